# SPDX-License-Identifier: Apache-2.0
"""The engine `foreign`: a library that has threads of its own, behind `EngineFunctions`.

Its threads end Ios with `complete_foreign`; the worker takes them from its stack of completions.
What a library has started it cannot always be made to drop, and it may write into an Io's buffers
until the very end.  So a worker that leaves drains with a deadline, and what has not ended then is
abandoned: its slot and its buffers stay mapped for as long as the process lives, and the buffers
are guest memory no more (`ring.cut_off`).
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from engine.engine cimport Engine, IO_WRITE, Io, end_io
from sys.atomics cimport pause
from sys.clock cimport now
from worker.completions cimport Completion, is_left, push_completion, take_completions

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int poll(pollfd *fds, unsigned long count, int milliseconds)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t count)


cdef enum:
    DRAIN_LIMIT = 200000000     # nanoseconds for what is started when the worker leaves
    DRAIN_PERIOD = 10           # milliseconds between two looks at the clock


cdef inline void complete_foreign(Io *io, int32_t result) noexcept nogil:
    """Any thread, once for each started Io: it has ended with 0 or -errno, and is given up.

    Nothing is read from or written to its buffers afterwards.
    """
    io.result = result
    push_completion(&io.engine.worker.completions, &io.completion)


cdef inline void start_foreign(Engine *e, Io *io) noexcept nogil:
    """Have the library begin an Io."""
    io.engine, io.newer, io.older = e, NULL, e.started
    if e.started != NULL:
        e.started.newer = io
    e.started = io
    e.functions.start(e.functions.image, io)


cdef inline void forget_started(Engine *e, Io *io) noexcept nogil:
    """Take an Io that has ended out of those that are started."""
    if io.newer != NULL:
        io.newer.older = io.older
    else:
        e.started = io.older
    if io.older != NULL:
        io.older.newer = io.newer


cdef inline void collect_foreign(Engine *e) noexcept nogil:
    """Take what the library's threads have ended."""
    cdef Completion *following
    cdef Completion *ended = take_completions(&e.worker.completions)
    cdef Io *io
    while ended != NULL:
        following = ended.next
        io = <Io *>ended
        forget_started(e, io)
        if io.result == 0:
            io.left = 0
        end_io(e, io, io.result)
        ended = following


cdef inline void drain_foreign(Engine *e) noexcept nogil:
    """Wait for all that is started, up to DRAIN_LIMIT; what is left in `started` is abandoned."""
    cdef uint64_t end = now() + DRAIN_LIMIT, signals
    cdef pollfd wakeup
    cdef Io *io = e.started
    while io != NULL and e.functions.cancel != NULL:
        e.functions.cancel(e.functions.image, io)
        io = io.older
    wakeup.fd, wakeup.events = e.worker.completions.fd, POLLIN
    collect_foreign(e)
    while e.started != NULL and now() < end:
        if poll(&wakeup, 1, DRAIN_PERIOD) > 0:
            read(wakeup.fd, &signals, sizeof(signals))
        collect_foreign(e)
    while e.started == NULL and not is_left(&e.worker.completions):
        pause()


cdef inline void copy_written(
    const Engine *e, const uint8_t *base, size_t length, uint8_t *to
) noexcept nogil:
    """Copy what abandoned writes read of `length` bytes at `base` to the same places in `to`."""
    cdef const Io *io = e.started
    cdef const uint8_t *piece
    cdef uint32_t i
    while io != NULL:
        for i in range(io.iov_count if io.kind == IO_WRITE else 0):
            piece = <const uint8_t *>io.iov[i].iov_base
            if base <= piece < base + length:
                memcpy(to + (piece - base), piece, io.iov[i].iov_len)
        io = io.older
