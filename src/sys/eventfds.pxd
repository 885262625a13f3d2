# SPDX-License-Identifier: Apache-2.0
"""Signals to eventfds that never make the sender wait, whatever is done to the eventfd.

Who shares an eventfd may fill it up and clear O_NONBLOCK at any time: a write then waits for
ever.  So may one through io_uring, if the flag goes between the kernel's look at it and the
write.  The kernel's own signals never wait: they add one where there is room.  So an eventfd is
registered with a small io_uring, and each message that another one posts there signals it.
"""

from libc.stdint cimport uint64_t

from sys.uring cimport (
    IORING_REGISTER_EVENTFD, IORING_SETUP_R_DISABLED, IORING_UNREGISTER_EVENTFD,
    IOSQE_CQE_SKIP_SUCCESS, enable_uring, io_uring, io_uring_cq_advance, io_uring_cq_ready,
    io_uring_prep_msg_ring, io_uring_queue_exit, io_uring_queue_init, io_uring_register_eventfd,
    io_uring_sqe, io_uring_unregister_eventfd, uring_fd,
)


cdef struct Signal:
    # All fields are the worker's.
    io_uring uring              # takes messages only; made at the first use, ended with the worker
    bint is_made
    bint is_bound               # to an eventfd, of which the kernel keeps a reference
    uint64_t entry              # number of the entry that was queued last for it; 0 for none


cdef inline int make_signal(Signal *s) noexcept nogil:
    """Have what a signal takes ready, unless it is: 0, or -errno.

    Its io_uring is restricted, where the kernel can do so: no entry is ever queued there.
    """
    cdef int rc
    if s.is_made:
        return 0
    rc = io_uring_queue_init(1, &s.uring, IORING_SETUP_R_DISABLED)
    if rc < 0:
        return rc
    rc = enable_uring(
        &s.uring, 0, 1 << IORING_REGISTER_EVENTFD | 1 << IORING_UNREGISTER_EVENTFD, 0
    )
    if rc < 0:
        io_uring_queue_exit(&s.uring)
        return rc
    s.is_made = True
    return 0


cdef inline int bind_signal(Signal *s, int fd) noexcept nogil:
    """Signal another eventfd from now on, borrowed for this call, or -1 for none: 0, or -errno.

    After a failure there is none.  A message that is still queued signals the new one.
    """
    cdef int rc
    if s.is_bound:
        io_uring_unregister_eventfd(&s.uring)
        s.is_bound = False
    if fd < 0:
        return 0
    rc = make_signal(s)
    if rc < 0:
        return rc
    rc = io_uring_register_eventfd(&s.uring, fd)
    s.is_bound = rc == 0
    return rc


cdef inline void prepare_signal(io_uring_sqe *sqe, Signal *s, uint64_t user_data) noexcept nogil:
    """Make a submission entry a signal; it completes only if that fails.

    No other may be queued: the messages that came before are dropped here, so that the kernel
    always has room for one.
    """
    io_uring_cq_advance(&s.uring, io_uring_cq_ready(&s.uring))
    io_uring_prep_msg_ring(sqe, uring_fd(&s.uring), 0, 0, 0)
    sqe.flags = IOSQE_CQE_SKIP_SUCCESS
    sqe.user_data = user_data


cdef inline void end_signal(Signal *s) noexcept nogil:
    """Let go of the eventfd and of all that was made for it."""
    if s.is_made:
        io_uring_queue_exit(&s.uring)
    s.is_made = s.is_bound = False
