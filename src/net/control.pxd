# SPDX-License-Identifier: Apache-2.0
"""The control queue (virtio 1.3, 5.1.6.5), where a front end leaves it to us: one command a time.

What a command asks for is done by the control thread, since the kernel may take its time over it:
the chain waits until CMD_CONFIGURE brings the answer.
"""

from libc.errno cimport EINVAL
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from net.layouts cimport (
    NET_CTRL_GUEST_OFFLOADS, NET_CTRL_GUEST_OFFLOADS_SET, NET_CTRL_MQ, NET_CTRL_MQ_VQ_PAIRS_SET,
    NET_ERR, NetCommand,
)
from net.state cimport NET_FLAW_NO_ACK, NetRequest, REPORT_COMMAND, net_of, net_vring
from virtio.dirtylog cimport mark_mapped
from virtio.flaw cimport found_flaw
from virtio.guestmem cimport MemoryView
from virtio.segments cimport readable_of, take_bytes
from virtio.virtq cimport Chain, Segment
from worker.fetching cimport put_back, take
from worker.logged cimport outrun_log
from worker.mailbox cimport stage_answer
from worker.state cimport FETCH_BUDGET, Worker, keep, let_go
from worker.vring cimport Vring, bump, give_back

cdef inline uint32_t command_bytes(const NetCommand *c) noexcept nogil:
    """How many bytes a known command carries; more than there are with an unknown one."""
    if c.type == NET_CTRL_MQ and c.command == NET_CTRL_MQ_VQ_PAIRS_SET:
        return sizeof(uint16_t)
    if c.type == NET_CTRL_GUEST_OFFLOADS and c.command == NET_CTRL_GUEST_OFFLOADS_SET:
        return sizeof(uint64_t)
    return sizeof(uint64_t) + 1


cdef inline bint parse_command(
    Segment *segments, uint32_t count, NetCommand *c, uint64_t *value
) noexcept nogil:
    """Read a command and what it carries, little-endian: whether it is known and whole."""
    cdef uint32_t bytes
    value[0] = 0
    if take_bytes(&segments, &count, <uint8_t *>c, sizeof(NetCommand)) < sizeof(NetCommand):
        return False
    bytes = command_bytes(c)
    if bytes > sizeof(uint64_t):
        return False
    return take_bytes(&segments, &count, <uint8_t *>value, bytes) == bytes


cdef inline void acknowledge(
    Worker *w, Vring *r, const MemoryView *view, const Chain *chain, uint8_t *ack, uint8_t answer
) noexcept nogil:
    """Give a command back with its answer, for which it has a place in this memory."""
    ack[0] = answer
    bump(&net_vring(r).counters.commands, 1)
    if w.log.of_data and not mark_mapped(&w.log, view.memory, ack, 1):
        outrun_log(w, r)
    give_back(r, chain, 1)


cdef inline int begin_command(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Have the control thread carry out a command, or refuse it: 1, or -errno."""
    cdef NetRequest *q = &net_vring(r).request
    cdef Segment *segments = w.segments
    cdef uint32_t readable = readable_of(segments, chain.segments)
    cdef NetCommand command
    cdef uint64_t value
    if readable == chain.segments:
        return found_flaw(&r.vq.flaw, NET_FLAW_NO_ACK, 0, readable, 0, EINVAL)
    if q.is_open or not parse_command(segments, readable, &command, &value):
        acknowledge(w, r, w.view, chain, segments[readable].base, NET_ERR)
        return 1
    q.type, q.command, q.value = command.type, command.command, value
    q.chain, q.ack = chain[0], segments[readable].base
    q.number += 1
    q.is_open = True
    q.pinned = keep(w, r)
    r.wanted = 0
    stage_answer(&w.mailbox, 0, r.number, REPORT_COMMAND)
    return 1


cdef inline void end_command(Worker *w, Vring *r) noexcept nogil:
    """Give the open command back, if it was carried out."""
    cdef NetRequest *q = &net_vring(r).request
    if q.is_open and net_of(w).parameters.answered == q.number:
        q.is_open = False
        acknowledge(w, r, q.pinned, &q.chain, q.ack, net_of(w).parameters.answer)
        let_go(w, r, q.pinned)
        r.wanted = 1
        r.wants_look = True


cdef inline int serve_control(Worker *w, Vring *r) noexcept nogil:
    """Begin the next command: 1 if there may be more, 0, or -errno."""
    cdef Chain chain
    cdef int rc = 1, budget = FETCH_BUDGET
    while rc > 0 and budget and r.wanted:
        budget -= 1
        rc = take(w, r, &chain)
        if rc > 0:
            rc = begin_command(w, r, &chain)
            if rc < 0:
                put_back(r, &chain, r.vq.avail)     # it is recorded no more
    return rc
