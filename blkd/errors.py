# SPDX-License-Identifier: Apache-2.0
"""Every exception that blkd raises on purpose.

What a person sees is `str(error)` and, on a second line, `error.hint`.
"""


class BlkdError(Exception):
    """Base of all blkd errors; `hint` says what a person can do about it."""

    hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class ProtocolError(BlkdError):
    """The peer broke the vhost-user protocol: the connection cannot go on."""


class RequestRefused(BlkdError):
    """A well-formed request that we decline: answered non-zero, the connection lives."""


class ImageError(BlkdError):
    """An image cannot be opened, created, resized or served as asked."""


class ImageBusy(ImageError):
    """Somebody else holds a lock on the image that excludes ours."""

    holder_known = True
    """False where no process is seen to have it: its last I/O may outlive one that was killed."""


class SyncFailed(ImageError):
    """What was written to an image could not be made durable, and may be lost."""

    def __init__(self, message: str, error: int, *, hint: str | None = None) -> None:
        """`error` is the errno."""
        super().__init__(message, hint=hint)
        self.error = error


class ConfigError(BlkdError):
    """A setting that is out of range or contradicts another or the image."""


class SocketError(BlkdError):
    """A UNIX socket cannot be bound, or nothing answers on it."""


class DataPlaneError(BlkdError):
    """The host cannot run the data plane (io_uring, memory, threads)."""


class AreaRefused(DataPlaneError):
    """A statistics area that this version of blkd cannot use, or that is none."""


class DrainTimeout(DataPlaneError):
    """Requests were still in flight when the time to drain them was over."""


class ControlError(BlkdError):
    """The control API refused a call; the message is its problem's detail."""

    status: int | None = None
    """Of HTTP; None where there was no answer."""
    kind: str | None = None
    """The problem's type."""
    title: str | None = None
    """The problem's title."""


class NoAnswer(ControlError):
    """The process that was asked does not answer in time."""


class NoSuchExport(BlkdError):
    """The daemon has no export of that name."""


class NoSuchOperation(BlkdError):
    """The daemon knows no call of that id that goes on, or has ended lately."""


class ExportExists(BlkdError):
    """The daemon has another export of that name."""


class ExportChanged(BlkdError):
    """The settings of an export are no more what the caller takes them for."""


class NoSuchGroup(BlkdError):
    """The daemon has no group of that name."""


class GroupExists(BlkdError):
    """The daemon has another group of that name."""


class GroupChanged(BlkdError):
    """The limits of a group are no more what the caller takes them for."""


class FreezeFailed(BlkdError):
    """An export does not come to rest, or did not stay so."""


class UpgradeError(BlkdError):
    """An export cannot go to another process: the one that serves it goes on."""


class StateError(BlkdError):
    """What a daemon keeps on disk cannot be read or written."""


class LaunchError(BlkdError):
    """A process that was to serve an export could not be started, or did not come to serve."""


class SandboxError(BlkdError):
    """A process cannot be confined as it must be."""


class BenchError(BlkdError):
    """A load cannot be made as asked, or the back end under load broke its word."""
