# SPDX-License-Identifier: Apache-2.0
"""Guest memory registered with io_uring: its pages are pinned once, not at each request."""

from sys.uring cimport io_uring_register_buffers, io_uring_unregister_buffers
from worker.mailbox cimport stage_answer
from worker.state cimport Worker


cdef inline void end_registering(Worker *w) noexcept nogil:
    """Answer the command to register memory, if there is one; `registered` says how it went."""
    if w.register_ticket:
        stage_answer(&w.mailbox, w.register_ticket, 0, 0)
        w.register_ticket = 0


cdef inline void leave_registered(Worker *w) noexcept nogil:
    """Have requests pin their memory as they come from now on: there is another map."""
    w.registered = 0
    end_registering(w)
    w.register_due = w.has_registered


cdef inline void register_memory(Worker *w) noexcept nogil:
    """Register the present map in place of the one before, or none, if that is due.

    Not before every request on an older map has ended: one may name a chunk of it, also in an
    entry that the kernel has not seen yet, and the kernel may wait for those it has seen.
    """
    if not w.register_due or w.old_views != NULL:
        return
    w.register_due = False
    if w.has_registered:
        io_uring_unregister_buffers(&w.uring)
        w.has_registered = False
    if w.register_ticket and w.view != NULL and w.view.memory.chunk_count:
        w.registered = io_uring_register_buffers(
            &w.uring, w.view.memory.chunks, w.view.memory.chunk_count
        )
        if w.registered == 0:
            w.registered = 1
            w.has_registered = True
    end_registering(w)
