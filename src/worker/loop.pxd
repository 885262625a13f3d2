# SPDX-License-Identifier: Apache-2.0
"""A worker's loop: a thread that serves virtqueues on an io_uring of its own.

It sleeps in one place, `polling.sleep`; kicks, commands and disk completions wake it there.
"""

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from figures.slot cimport add
from sys.eventfds cimport end_signal
from sys.uring cimport (
    IORING_CQE_F_MORE, IORING_OP_ASYNC_CANCEL, IORING_OP_MSG_RING, IORING_OP_POLL_ADD,
    IORING_REGISTER_BUFFERS, IORING_SETUP_CQSIZE, IORING_SETUP_DEFER_TASKRUN,
    IORING_SETUP_R_DISABLED, IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_TASKRUN_FLAG, IORING_UNREGISTER_BUFFERS, IOSQE_ASYNC, IOSQE_CQE_SKIP_SUCCESS,
    enable_uring, io_uring, io_uring_cq_advance, io_uring_cqe, io_uring_params,
    io_uring_peek_batch_cqe, io_uring_queue_exit, io_uring_queue_init_params, io_uring_sq_ready,
    operation,
)
from sys.usdt cimport probe_kick
from worker.commands cimport settle, take_commands
from worker.mailbox cimport CMD_QUIT, deliver
from worker.notify cimport end_kick_poll, watch
from worker.polling cimport wait
from worker.serving cimport serve_rings
from worker.state cimport (
    TAG_COMPLETIONS, TAG_KICK, TAG_MAILBOX, Worker as WorkerState, pointer_of, submit_queued,
    tag_of,
)
from worker.timing cimport begin_timing, tell_cpu_time, tell_load, time_turn
from worker.vring cimport Vring, bump

cdef enum:
    SQ_ENTRIES = 1024
    CQ_ENTRIES = 8192           # more than can be in flight; a full one is not lost either
    CQE_BATCH = 128


cdef inline int open_uring(io_uring *ring, unsigned more=0) noexcept nogil:
    """Make an io_uring that only this thread uses (Linux 6.1), with `more` flags: 0, or -errno.

    An entry that the kernel refuses does not hold up those behind it.
    """
    cdef io_uring_params params
    memset(&params, 0, sizeof(params))
    params.flags = (
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG
        | IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL | more
    )
    params.cq_entries = CQ_ENTRIES
    return io_uring_queue_init_params(SQ_ENTRIES, ring, &params)


cdef inline int open_restricted(WorkerState *w) noexcept nogil:
    """Make the worker's io_uring, which does what worker and device ask for and nothing else.

    0, or -errno; `is_restricted` says whether the kernel sees to that.
    """
    cdef uint64_t operations = (
        w.device.operations | operation(IORING_OP_POLL_ADD) | operation(IORING_OP_ASYNC_CANCEL)
        | operation(IORING_OP_MSG_RING)
    )
    cdef int rc = open_uring(&w.uring, IORING_SETUP_R_DISABLED)
    if rc < 0:
        return rc
    rc = enable_uring(
        &w.uring, operations, 1 << IORING_REGISTER_BUFFERS | 1 << IORING_UNREGISTER_BUFFERS,
        IOSQE_ASYNC | IOSQE_CQE_SKIP_SUCCESS
    )
    if rc < 0:
        io_uring_queue_exit(&w.uring)
        return rc
    w.is_restricted = rc == 1
    return 0


cdef inline void dispatch(WorkerState *w, const io_uring_cqe *cqe) noexcept nogil:
    """Bring one completion that is not the device's to what waits for it."""
    cdef uint64_t tag = tag_of(cqe.user_data)
    cdef Vring *r
    if tag == TAG_KICK:
        r = <Vring *>pointer_of(cqe.user_data)
        r.wants_look = True
        bump(&r.kick.count, 1)
        probe_kick(r.index)
        add(&w.slot.events.kicks, 1)
        if not cqe.flags & IORING_CQE_F_MORE:
            end_kick_poll(w, r, cqe.res)
    elif tag == TAG_MAILBOX and not cqe.flags & IORING_CQE_F_MORE:
        watch(w, w.mailbox.commands_fd, w, TAG_MAILBOX)
    elif tag == TAG_COMPLETIONS and not cqe.flags & IORING_CQE_F_MORE:
        watch(w, w.completions.fd, w, TAG_COMPLETIONS)


cdef inline void reap(WorkerState *w) noexcept nogil:
    """Take every completion that is there."""
    cdef io_uring_cqe *cqes[CQE_BATCH]
    cdef unsigned n, i
    while True:
        n = io_uring_peek_batch_cqe(&w.uring, cqes, CQE_BATCH)
        w.device.complete(w, cqes, n)
        for i in range(n):
            dispatch(w, cqes[i])
        io_uring_cq_advance(&w.uring, n)
        if n < CQE_BATCH:
            return


cdef inline int turn(WorkerState *w) noexcept nogil:
    """Wait until something arrives unless there is more to do, and see to all of it."""
    cdef int rc = wait(w)
    if rc < 0:
        return rc
    time_turn(w)
    reap(w)
    take_commands(w)
    serve_rings(w)
    w.device.end_turn(w)
    tell_load(w)
    settle(w)
    if w.mailbox.staged != w.mailbox.delivered:
        # No answer may overtake a call or the use of a descriptor.
        if submit_queued(w) >= 0 and io_uring_sq_ready(&w.uring) == 0:
            deliver(&w.mailbox)
        else:
            w.unfinished = True
    return 0


cdef inline void end_signals(WorkerState *w) noexcept nogil:
    """Let go of every eventfd."""
    cdef uint32_t i
    for i in range(w.count):
        end_signal(&w.vrings[i].call.signal)
    end_signal(&w.error)


cdef inline int serve(WorkerState *w) noexcept nogil:
    """Own an io_uring on this thread until CMD_QUIT: 0, or -errno."""
    cdef int rc = open_restricted(w)
    if rc < 0:
        return rc
    w.device.open(w)
    begin_timing(w)
    watch(w, w.mailbox.commands_fd, w, TAG_MAILBOX)
    if w.completions.fd >= 0:
        watch(w, w.completions.fd, w, TAG_COMPLETIONS)
    while rc == 0 and not w.quit:
        rc = turn(w)
    w.abandoned = w.device.quit(w)
    if w.has_begun:
        tell_cpu_time(w)
    io_uring_queue_exit(&w.uring)
    end_signals(w)
    return rc
