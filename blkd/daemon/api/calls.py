# SPDX-License-Identifier: Apache-2.0
"""What each call of the API does: one method for each line of the table of routes."""

import os
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

import blkd
from blkd.control import daemon_models as models
from blkd.daemon.api.call_and_reply import Call, Reply
from blkd.daemon.api.exports import Exports, Work
from blkd.daemon.api.exposition import Exposition
from blkd.daemon.api.openapi import openapi_document
from blkd.daemon.api.operations import Operations, wait_for
from blkd.errors import NoSuchExport, NoSuchGroup, RequestRefused
from blkd.statistics.figures import NamedFigures

NAME: Final = re.compile(models.NAME_PATTERN)


class Calls:
    """The methods that the routes name.

    Those of operations get `Work` besides, and run in a task of their own.
    """

    def __init__(
        self,
        exports: Exports,
        operations: Operations,
        dashboard: models.DashboardView | None = None,
    ) -> None:
        self._exports = exports
        self._dashboard = dashboard
        self._operations = operations
        self._exposition = Exposition(exports)

    async def about(self, _call: Call) -> Reply:
        return Reply(models.DaemonView(version=blkd.__version__, pid=os.getpid()))

    async def openapi(self, _call: Call) -> Reply:
        return Reply(openapi_document())

    async def list(self, _call: Call) -> Reply:
        return Reply(models.ExportList(exports=tuple(self._exports.list())))

    async def add(self, call: Call, work: Work) -> Reply:
        view, is_new = await self._exports.add(call.body, work)
        status = HTTPStatus.CREATED if is_new else HTTPStatus.OK
        headers = {"Location": f"{models.EXPORTS}/{view.name}"} if is_new else {}
        return Reply(view, status, headers | _tagged(view))

    async def show(self, call: Call) -> Reply:
        view = await self._exports.get(_name(call))
        return Reply(view, headers=_tagged(view))

    async def change(self, call: Call, _work: Work) -> Reply:
        result = await self._exports.change(_name(call), call.body, call.if_match)
        return Reply(result, headers=_tagged(result.export))

    async def remove(self, call: Call, _work: Work) -> Reply:
        delete_image = call.query.delete_image
        return Reply(await self._exports.remove(_name(call), delete_image=delete_image))

    async def stats(self, call: Call) -> Reply:
        return Reply(await self._exports.stats(_name(call)))

    async def in_flight(self, call: Call) -> Reply:
        return Reply(await self._exports.in_flight(_name(call)))

    async def figures(self, call: Call) -> Reply:
        name = _name(call)
        for each in await self._figures():
            if each.name == name:
                return Reply(each)
        raise NoSuchExport(f"there is no export {name}")

    async def all_figures(self, _call: Call) -> Reply:
        return Reply(models.FiguresList(exports=tuple(await self._figures())))

    async def _figures(self) -> Sequence[NamedFigures]:
        """The figures of all exports, by name."""
        return [NamedFigures(each.name, each.figures) for each in await self._exports.observe()]

    async def logs(self, call: Call) -> Reply:
        return Reply(await self._exports.logs(_name(call), call.query.lines))

    async def start(self, call: Call, _work: Work) -> Reply:
        return Reply(await self._exports.start(_name(call)))

    async def stop(self, call: Call, _work: Work) -> Reply:
        return Reply(await self._exports.stop(_name(call)))

    async def pause(self, call: Call, _work: Work) -> Reply:
        return Reply(await self._exports.pause(_name(call), call.body.deadline))

    async def resume(self, call: Call, _work: Work) -> Reply:
        return Reply(await self._exports.resume(_name(call)))

    async def retry(self, call: Call, _work: Work) -> Reply:
        return Reply(await self._exports.retry(_name(call)))

    async def resize(self, call: Call, _work: Work) -> Reply:
        body = call.body
        return Reply(await self._exports.resize(_name(call), body.size, force=body.force))

    async def kill(self, call: Call, _work: Work) -> Reply:
        return Reply(await self._exports.kill(_name(call)))

    async def upgrade(self, call: Call, work: Work) -> Reply:
        return Reply(await self._exports.upgrade(_name(call), work))

    async def groups(self, _call: Call) -> Reply:
        return Reply(models.GroupList(groups=tuple(self._exports.groups.list())))

    async def add_group(self, call: Call, _work: Work) -> Reply:
        view, is_new = await self._exports.groups.add(call.body)
        status = HTTPStatus.CREATED if is_new else HTTPStatus.OK
        headers = {"Location": f"{models.GROUPS}/{view.name}"} if is_new else {}
        return Reply(view, status, headers | _group_tagged(view))

    async def group(self, call: Call) -> Reply:
        view = self._exports.groups.get(_group(call))
        return Reply(view, headers=_group_tagged(view))

    async def change_group(self, call: Call, _work: Work) -> Reply:
        view = await self._exports.groups.change(_group(call), call.body, call.if_match)
        return Reply(view, headers=_group_tagged(view))

    async def remove_group(self, call: Call, _work: Work) -> Reply:
        return Reply(await self._exports.groups.remove(_group(call)))

    async def dashboard(self, _call: Call) -> Reply:
        if self._dashboard is None:
            raise RequestRefused(
                "the dashboard is off", hint="`listen` in the table [dashboard] of blkd.toml"
            )
        return Reply(self._dashboard)

    async def images(self, _call: Call) -> Reply:
        return Reply(models.ImageList(images=tuple(await self._exports.images())))

    async def create_image(self, call: Call, work: Work) -> Reply:
        return Reply(await self._exports.create_image(call.body, work), HTTPStatus.CREATED)

    async def operations(self, _call: Call) -> Reply:
        return Reply(models.OperationList(operations=self._operations.list()))

    async def operation(self, call: Call) -> Reply:
        running = self._operations.find(call.name)
        await wait_for(running, call.wait)
        return Reply(running.show())

    async def cancel(self, call: Call) -> Reply:
        running = self._operations.find(call.name)
        running.cancel()
        return Reply(running.show(), HTTPStatus.ACCEPTED)

    async def metrics(self, _call: Call) -> Reply:
        return Reply(await self._exposition.text())


def _name(call: Call) -> str:
    """The name in the path.  Raises NoSuchExport if none can be called so."""
    if not _can_be_name(call.name):
        raise NoSuchExport(f"there is no export {call.name!r}")
    return call.name


def _group(call: Call) -> str:
    """Likewise that of a group.  Raises NoSuchGroup."""
    if not _can_be_name(call.name):
        raise NoSuchGroup(f"there is no group {call.name!r}")
    return call.name


def _can_be_name(text: str) -> bool:
    return NAME.match(text) is not None and len(text) <= models.MAX_NAME


def _group_tagged(view: models.GroupView) -> dict[str, str]:
    return {"ETag": models.group_tag(view.limits)}


def _tagged(view: models.ExportView) -> dict[str, str]:
    return {"ETag": models.entity_tag(view.device, view.settings)}
