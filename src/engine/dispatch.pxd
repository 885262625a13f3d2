# SPDX-License-Identifier: Apache-2.0
"""What a device asks of its engine; no other file asks which one it is."""

from libc.stdint cimport int32_t

from engine.durable cimport start_sync
from engine.engine cimport (
    ENGINE_FOREIGN, ENGINE_INLINE, ENGINE_NULL, Engine, Io, IoSpec, STEP_DELAY, STEP_TRANSFER,
)
from engine.faulty cimport start_faulty, strike
from engine.foreign cimport collect_foreign, drain_foreign, start_foreign
from engine.inline cimport try_inline
from engine.null cimport start_null
from engine.uring cimport complete_rarely, complete_transfer, start_uring
from sys.hints cimport unlikely


cdef enum:
    INLINE_SHARE = 12           # log2 of the bytes that weigh as much as one more chain


cdef inline int try_at_once(Engine *e, const IoSpec *t, int32_t *result) noexcept nogil:
    """Do a transfer here and now if it cannot wait, with its `result` as `Io.result` has it.

    Returns what that weighs, in chains, or 0: then an Io with the same has to be started, before
    the next is tried.
    """
    result[0] = 0
    if unlikely(e.fault_count) and strike(e, t.kind, t.offset, t.length):
        return 0
    if e.kind == ENGINE_NULL:
        return 1
    if e.kind == ENGINE_INLINE and try_inline(e, t, result):
        return 1 + <int>(t.length >> INLINE_SHARE)
    return 0


cdef inline void start_plain(Engine *e, Io *io) noexcept nogil:
    """Have the engine itself do an Io, whatever was to go wrong with it before."""
    if unlikely(e.kind >= ENGINE_NULL):
        if e.kind == ENGINE_NULL:
            start_null(e, io)
        else:
            start_foreign(e, io)
    else:
        start_uring(e, io)


cdef inline void start(Engine *e, Io *io) noexcept nogil:
    """Have an Io done; it ends by `end_io`, perhaps before this returns."""
    io.shorten = False
    if unlikely(e.struck != NULL) and start_faulty(e, io):
        return
    start_plain(e, io)


cdef inline void start_again(Engine *e, Io *io) noexcept nogil:
    """Have an Io done that has ended and is as it was when it was started."""
    if unlikely(e.fault_count):
        strike(e, io.kind, io.offset, io.length)
    start(e, io)


cdef inline void complete(Engine *e, Io *io, int32_t result) noexcept nogil:
    """Take a completion of the worker's io_uring that is for `io`."""
    if result > 0 and io.step == STEP_TRANSFER:
        complete_transfer(e, io, result)
    elif io.step == STEP_DELAY:
        start_plain(e, io)      # the delay is over, in whatever way
    else:
        complete_rarely(e, io, result)


cdef inline void begin_turn(Engine *e) noexcept nogil:
    """Take what has ended on other threads."""
    if unlikely(e.kind == ENGINE_FOREIGN):
        collect_foreign(e)


cdef inline void end_turn(Engine *e) noexcept nogil:
    """See to what is done once for all that came in one turn of the worker."""
    start_sync(e)


cdef inline void drain(Engine *e) noexcept nogil:
    """Nothing is started any more: wait for what cannot be taken back, not for long.

    What is in io_uring ends with that; what is left in `started` then is abandoned.
    """
    if e.kind == ENGINE_FOREIGN:
        drain_foreign(e)
