# SPDX-License-Identifier: Apache-2.0
"""Carries out the commands of a plan, most of them on the data path."""

from typing import cast

import structlog

from blkd.vhost_user.backend_requests import BackendRequests
from blkd.vhost_user.channel import Fds
from blkd.vhost_user.commands import (
    AddMemory,
    Announce,
    Command,
    Configure,
    EnableVring,
    InvalidateIotlb,
    IotlbCommand,
    LogData,
    MemoryCommand,
    MoveVring,
    OfferInflight,
    OpenBackChannel,
    RemoveMemory,
    SetCall,
    SetError,
    SetKick,
    SetLog,
    SetMemory,
    StartVring,
    StopVring,
    TranslateAddresses,
    UpdateIotlb,
    UseInflight,
    VringCommand,
)
from blkd.vhost_user.data_path import DataPath
from blkd.vhost_user.misses import Misses
from blkd.vhost_user.session import Answer, Plan

log = structlog.get_logger()


class PlanRunner:
    """Carries out plans of one session."""

    def __init__(self, data_path: DataPath, requests: BackendRequests, misses: Misses) -> None:
        self._data_path = data_path
        self._requests = requests
        self._misses = misses

    async def run(self, plan: Plan, fds: Fds, reply_fds: Fds) -> Answer | None:
        """Carry out a plan's commands in their order: its answer.

        Args:
            plan: Of a session whose data path this is.
            fds: The descriptors that came with the request; those that a command uses are taken.
            reply_fds: Where those go that are to be sent with the reply.

        Raises:
            RequestRefused: By the plan, or by the data path; later commands are not carried out.
        """
        result: int | None = None
        while True:
            try:
                command = plan.send(result)
            except StopIteration as end:
                return cast("Answer | None", end.value)
            result = await self._perform(command, fds, reply_fds)

    async def _perform(self, command: Command, fds: Fds, reply_fds: Fds) -> int | None:
        """Carry out one command: its result, where it has one."""
        match command:
            case SetMemory() | AddMemory() | RemoveMemory() | SetLog() | LogData():
                await self._perform_on_memory(command, fds)
            case TranslateAddresses() | UpdateIotlb() | InvalidateIotlb():
                await self._perform_on_iotlb(command)
            case OfferInflight(region):
                reply_fds.add([await self._data_path.make_inflight(region)])
            case UseInflight(region, packed):
                await self._data_path.use_inflight(region, fds.take_one(), packed=packed)
            case Configure():
                await self._data_path.configure()
            case Announce(mac):
                self._data_path.announce(mac)
            case OpenBackChannel():
                self._requests.use_channel(fds.take_one())
            case _:
                return await self._perform_on_vring(command, fds)
        return None

    async def _perform_on_memory(self, command: MemoryCommand, fds: Fds) -> None:
        data_path = self._data_path
        match command:
            case SetMemory(regions):
                await data_path.set_memory(regions, fds.take())
            case AddMemory(region):
                await data_path.add_memory(region, fds.take_one())
            case RemoveMemory(region):
                await data_path.remove_memory(region)
            case SetLog(log_base):
                await data_path.set_log(log_base, fds.take_one() if log_base else None)
            case LogData(on):
                await data_path.log_data(on=on)
                log.info("dirty log switched", on=on)

    async def _perform_on_iotlb(self, command: IotlbCommand) -> None:
        data_path = self._data_path
        match command:
            case TranslateAddresses(on):
                await data_path.translate_addresses(on=on)
            case UpdateIotlb(entry):
                await data_path.update_iotlb(entry)
                self._misses.note_update(entry)
            case InvalidateIotlb(iova, size):
                await data_path.invalidate_iotlb(iova, size)

    async def _perform_on_vring(self, command: VringCommand, fds: Fds) -> int | None:
        data_path = self._data_path
        match command:
            case SetKick(index):
                await data_path.set_kick(index, fds.take_one())
            case SetCall(index):
                await data_path.set_call(index, fds.take_any())
            case SetError(index):
                await data_path.set_error(index, fds.take_any())
            case StartVring(index, setup):
                await data_path.start_vring(index, setup)
                log.info("ring started", ring=index, size=setup.size, base=setup.base)
            case MoveVring(index, setup):
                await data_path.move_vring(index, setup)
            case EnableVring(index, enabled):
                await data_path.enable_vring(index, enabled=enabled)
            case StopVring(index):
                base = await data_path.stop_vring(index)
                log.info("ring stopped", ring=index, base=base)
                return base
        return None
