# SPDX-License-Identifier: Apache-2.0
"""A network device as a worker calls it (`worker.state.Device`)."""

from libc.stdint cimport uint32_t

from net.buffers cimport give_up_buffers
from net.control cimport begin_command, end_command, serve_control
from net.receive cimport LEAST_EXPECTED, receive
from net.state cimport (
    NET_CONTROL, NET_RECEIVE, NET_TRANSMIT, NetParameters, NetVring, net_of, net_vring, role_of,
)
from net.transmit cimport send_again, transmit
from sys.uring cimport IORING_OP_POLL_ADD, io_uring_cqe, operation
from virtio.virtq cimport Chain
from worker.state cimport Device, TAG_DEVICE, Worker, pointer_of, tag_of
from worker.vring cimport Vring, give_back


cdef inline void open_net(Worker *w) noexcept nogil:
    """Give each vring its part."""
    cdef uint32_t i
    for i in range(w.count):
        w.vrings[i].part = &net_of(w).vrings[i]
        net_of(w).vrings[i].vring = &w.vrings[i]


cdef inline void configure_net(Worker *w, const void *parameters) noexcept nogil:
    """Serve what comes next by other parameters."""
    net_of(w).parameters = (<const NetParameters *>parameters)[0]


cdef inline void start_net(Worker *w, Vring *r) noexcept nogil:
    """Begin with nothing fetched: whether there is a packet, or room for one, shows at once."""
    cdef NetVring *v = net_vring(r)
    v.role = role_of(&net_of(w).parameters, v.index)
    v.buffer_count = v.iov_count = v.room = v.spilled = 0
    v.pinned = NULL
    v.request.is_open = False
    v.expected = LEAST_EXPECTED
    v.is_ready = v.fd >= 0
    v.is_gone = False
    r.wanted = 1


cdef inline void begin_turn_net(Worker *w) noexcept nogil:
    """Put back what is kept of vrings that are to rest, and answer the guest's commands."""
    cdef uint32_t i
    for i in range(w.started_count):
        give_up_buffers(w, w.started[i])
        end_command(w, w.started[i])


cdef inline int serve_net(Worker *w, Vring *r) noexcept nogil:
    """Move packets, or begin a command: 1 if there may be more, 0, or -errno."""
    cdef NetVring *v = net_vring(r)
    if v.role == NET_RECEIVE:
        return receive(w, r)
    return transmit(w, r) if v.role == NET_TRANSMIT else serve_control(w, r)


cdef inline int begin_again(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Deal with a chain that a back end had fetched before it died: 1, or -errno.

    A buffer to receive into is given back empty: drivers take that for a packet too short, and
    make the buffer available again.
    """
    cdef NetVring *v = net_vring(r)
    if v.role == NET_TRANSMIT:
        return send_again(w, r, chain)
    if v.role == NET_CONTROL:
        return begin_command(w, r, chain)
    give_back(r, chain, 0)
    return 1


cdef inline void complete_net(Worker *w, io_uring_cqe **cqes, uint32_t count) noexcept nogil:
    """Go on with each vring whose TAP queue has become ready."""
    cdef NetVring *v
    cdef uint32_t i
    for i in range(count):
        if tag_of(cqes[i].user_data) == TAG_DEVICE:
            v = <NetVring *>pointer_of(cqes[i].user_data)
            v.is_polled = False
            v.is_ready = True
            v.vring.wanted = 1
            v.vring.wants_look = True


cdef inline void end_turn_net(Worker *w) noexcept nogil:
    """Leave nothing to the end of a turn."""


cdef inline bint quit_net(Worker *w) noexcept nogil:
    """Nothing that the kernel was asked for touches the guest's memory."""
    return False


cdef inline void be_net(Device *d) noexcept nogil:
    """Have a worker call these functions."""
    d.device_size, d.worker_size, d.vring_size = sizeof(Device), sizeof(Worker), sizeof(Vring)
    d.operations = operation(IORING_OP_POLL_ADD)
    d.open, d.configure, d.start = open_net, configure_net, start_net
    d.begin_turn, d.end_turn = begin_turn_net, end_turn_net
    d.serve, d.begin, d.complete = serve_net, begin_again, complete_net
    d.quit = quit_net
