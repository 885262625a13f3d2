# SPDX-License-Identifier: Apache-2.0
"""Calls that may block for ever, kept off the event loop.

A thread that waits for a file system or a disk cannot be called off, so each call has a thread of
its own, which nobody waits for: neither the event loop, beyond a limit, nor the end of the process.
"""

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def ask(call: Callable[[], T], limit: float) -> T:
    """What `call` returns or raises, from a thread of its own.

    Raises TimeoutError after `limit` seconds: the thread goes on by itself, and what becomes of
    it is not known.  Raises OSError if there is no thread to be had.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return  # nobody waits any more
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    try:
        threading.Thread(target=run, name="blkd-ask", daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    async with asyncio.timeout(limit):
        return await answer
