# SPDX-License-Identifier: Apache-2.0
"""How a connection begins: a guest asks for one, a host program or a sibling arrives."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from sys.sockets cimport (
    AF_UNIX, IPPROTO_TCP, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET,
    SO_SNDBUF, TCP_NODELAY, fill_unix, getsockopt, setsockopt, sockaddr_storage, socket, socketpair,
    socklen_t,
)
from sys.uring cimport IORING_CQE_F_MORE, io_uring_prep_multishot_accept, io_uring_sqe
from vsock.buffer cimport first_piece, kept
from vsock.changes cimport (
    CONNECT_SECONDS, LINE_SECONDS, finish, lose_receiver, set_deadline, start_tick, touch,
)
from vsock.connection cimport (
    ASKED, BUFFER_BYTES, CONNECTING, Connection, DRAINING, DUE_REQUEST, LINE, Operation, State,
    WAITING,
)
from vsock.credit cimport learn
from vsock.fifo cimport CONNECTIONS
from vsock.group cimport Handover, Member, hand_over, is_free, release, sibling, take_handovers
from vsock.layouts cimport (
    CID_HOST, F_NO_IMPLIED_STREAM, F_SEQPACKET, F_STREAM, Header, TX, TYPE_SEQPACKET, TYPE_STREAM,
)
from vsock.line cimport parse_connect, put_number
from vsock.sockets cimport close, close_socket, refuse_descriptors, start_connecting
from vsock.state cimport Forward, LISTENERS, MOST_PATH, Vsock, vsock_of
from vsock.table cimport enlist, find, free_port, give_connection_back, take_connection
from worker.state cimport TAG_DEVICE, Worker, next_sqe, tagged
from worker.vring cimport bump

cdef enum:
    MESSAGE_OVERHEAD = 64       # bytes of a socket's buffer that its kernel keeps from a message


cdef inline bint has_type(const Vsock *v, uint16_t type) noexcept nogil:
    """Whether the driver may have connections of this type (5.10.3)."""
    cdef uint64_t features = v.choices.features
    if type == TYPE_SEQPACKET:
        return (features >> F_SEQPACKET) & 1
    return type == TYPE_STREAM and (
        (features >> F_STREAM) & 1 or not (features >> F_NO_IMPLIED_STREAM) & 1
    )


cdef inline int socket_type(uint16_t type) noexcept nogil:
    return SOCK_CLOEXEC | (SOCK_SEQPACKET if type == TYPE_SEQPACKET else SOCK_STREAM)


cdef inline void make_room(Connection *c) noexcept nogil:
    """Have a socket take the longest message that the guest may send, or allow no longer one."""
    cdef int size = BUFFER_BYTES
    cdef socklen_t length = sizeof(size)
    if c.type != TYPE_SEQPACKET:
        return
    setsockopt(c.fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size))
    size = 0
    getsockopt(c.fd, SOL_SOCKET, SO_SNDBUF, &size, &length)
    c.credit.buf_alloc = <uint32_t>min(max(size - MESSAGE_OVERHEAD, 0), <int>BUFFER_BYTES)


cdef inline bint has_share(const Vsock *v, bint of_sibling) noexcept nogil:
    """Whether one more may arrive: some places are the guest's own to ask for, and those that wait
    for an answer have a share only.
    """
    cdef uint32_t share = v.most // 4
    return v.free_count > share and v.unanswered[1 if of_sibling else 0] < 2 * share


cdef inline Connection *room_for(
    Worker *w, State state, uint16_t type, int fd
) noexcept nogil:
    """A free connection, as `take_connection`; where there is none, a drain ends for the next."""
    cdef Vsock *v = vsock_of(w)
    cdef Connection *c = take_connection(v, state, type, fd)
    cdef uint32_t i
    if c != NULL:
        return c
    for i in range(<uint32_t>CONNECTIONS):
        if v.connections[i].state == DRAINING:
            bump(&v.counters[<int>TX].given_up, 1)
            finish(w, &v.connections[i])
            return NULL
    return NULL


# ---- a guest asks ----

cdef inline const Forward *forward_of(const Vsock *v, uint32_t port) noexcept nogil:
    """Where connections to this port of the host go instead; or NULL."""
    cdef uint32_t i
    for i in range(v.forward_count):
        if v.forwards[i].port == port:
            return &v.forwards[i]
    return NULL


cdef inline int find_address(
    const Vsock *v, uint32_t port, sockaddr_storage *out, uint32_t *length
) noexcept nogil:
    """Where a connection to this port of the host goes: the address's family, or -1."""
    cdef const Forward *forward = forward_of(v, port)
    cdef uint8_t path[MOST_PATH + 11]
    cdef uint32_t n = v.path_length
    if forward != NULL:
        memcpy(out, &forward.address, sizeof(sockaddr_storage))
        length[0] = forward.address_length
        return forward.family
    if n == 0:
        return -1
    memcpy(path, v.path, n)
    path[n] = c"_"
    n += 1
    n += put_number(path + n, port)
    length[0] = fill_unix(out, path, n)
    return AF_UNIX


cdef inline bint ask_host(Worker *w, const Header *h) noexcept nogil:
    """Connect to a socket of the host for the guest: whether that has begun."""
    cdef Vsock *v = vsock_of(w)
    cdef Connection *c
    cdef sockaddr_storage address
    cdef uint32_t length
    cdef int one = 1, fd, family = find_address(v, h.dst_port, &address, &length)
    if family < 0 or (family != AF_UNIX and h.type != TYPE_STREAM):
        return False
    # Where its listener has no room it is refused, as by Linux: to wait takes a kernel's thread.
    fd = socket(
        family, socket_type(h.type) | (SOCK_NONBLOCK if family == AF_UNIX else 0), 0
    )
    if fd < 0:
        return False
    c = room_for(w, CONNECTING, h.type, fd)
    if c == NULL:
        close(fd)
        return False
    if family == AF_UNIX:
        refuse_descriptors(v, c)
    else:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    c.address, c.address_length = address, length
    begin_asked(w, c, h)
    start_connecting(w, c)
    return True


cdef inline bint ask_sibling(Worker *w, const Header *h) noexcept nogil:
    """Hand a connection over to the guest that has this CID: whether there is one."""
    cdef Vsock *v = vsock_of(w)
    cdef Member *to = sibling(v.member, <uint32_t>h.dst_cid)
    cdef Handover *out
    cdef Connection *c
    cdef int fds[2]
    if to == NULL or socketpair(AF_UNIX, socket_type(h.type), 0, fds) < 0:
        return False
    c = room_for(w, WAITING, h.type, fds[0])
    if c == NULL:
        close(fds[0])
        close(fds[1])
        return False
    out = &v.member.handovers[c.number]
    if not is_free(out):        # it has not even taken what came before
        close(fds[0])
        close(fds[1])
        give_connection_back(v, c)
        return False
    c.of_sibling = True
    begin_asked(w, c, h)
    out.fd, out.type, out.cid = fds[1], h.type, v.cid
    out.port, out.to_port = h.src_port, h.dst_port
    v.pairs += 1
    c.pair = out.pair = <uint64_t>v.cid << 32 | v.pairs
    hand_over(to, out)
    return True


cdef inline void begin_asked(Worker *w, Connection *c, const Header *h) noexcept nogil:
    """Begin a connection that the guest has asked for."""
    c.peer_cid, c.peer_port, c.guest_port = <uint32_t>h.dst_cid, h.dst_port, h.src_port
    make_room(c)
    learn(&c.credit, h)
    enlist(vsock_of(w), c)
    set_deadline(w, c, CONNECT_SECONDS)
    touch(w, c)


cdef inline bint ask_other(Worker *w, const Header *h) noexcept nogil:
    """Begin a connection that the guest asks for: whether there is anybody to ask in turn."""
    return ask_host(w, h) if h.dst_cid == CID_HOST else ask_sibling(w, h)


# ---- somebody arrives ----

cdef inline void ask_guest(Worker *w, Connection *c) noexcept nogil:
    """Have the guest see OP_REQUEST; it has a moment to answer."""
    c.state = ASKED
    c.due = DUE_REQUEST
    make_room(c)
    enlist(vsock_of(w), c)
    set_deadline(w, c, CONNECT_SECONDS)
    touch(w, c)


cdef inline void listen(Worker *w, uint32_t listener) noexcept nogil:
    """Accept host programs, as long as that goes."""
    cdef Vsock *v = vsock_of(w)
    cdef io_uring_sqe *sqe
    if v.listeners[listener] < 0 or v.accepts[listener].is_pending:
        return
    v.accepts[listener].is_pending = True
    sqe = next_sqe(w)
    io_uring_prep_multishot_accept(sqe, v.listeners[listener], NULL, NULL, SOCK_CLOEXEC)
    sqe.user_data = tagged(&v.accepts[listener], TAG_DEVICE)


cdef inline void welcome(
    Worker *w, Operation *accept, int32_t result, uint32_t flags
) noexcept nogil:
    """Take a host program, which has to say what it wants, or try again in a moment."""
    cdef Vsock *v = vsock_of(w)
    cdef Connection *c
    if not flags & IORING_CQE_F_MORE:
        accept.is_pending = False
        start_tick(w)           # there may be no descriptor left: not at once
    if result < 0:
        return
    c = NULL
    if has_share(v, False):
        c = take_connection(v, LINE, TYPE_SEQPACKET if accept.number else TYPE_STREAM, result)
    if c == NULL:
        close_socket(w, result)
        return
    v.unanswered[0] += 1
    refuse_descriptors(v, c)
    set_deadline(w, c, LINE_SECONDS)
    touch(w, c)


cdef inline void read_line(Worker *w, Connection *c) noexcept nogil:
    """Take the CONNECT of a host program, if it is whole; what follows it is for the guest."""
    cdef Vsock *v = vsock_of(w)
    cdef uint8_t *at
    cdef uint32_t length = first_piece(&c.incoming, &at)
    cdef int rc = parse_connect(at, length, &c.guest_port)
    if rc < 0 or not has_type(v, c.type) or (c.type == TYPE_SEQPACKET and rc != <int>length):
        finish(w, c)
    elif rc:
        c.incoming.head += rc
        c.peer_cid, c.peer_port = CID_HOST, free_port(v, c.guest_port)
        ask_guest(w, c)


cdef inline void receive_sibling(Worker *w, const Handover *h) noexcept nogil:
    """Take a connection that another guest asks for."""
    cdef Vsock *v = vsock_of(w)
    cdef Connection *c = NULL
    if (
        has_share(v, True) and has_type(v, h.type)
        and find(v, h.cid, h.port, h.to_port) == NULL
    ):
        c = take_connection(v, ASKED, h.type, h.fd)
    if c == NULL:
        close(h.fd)             # which the other worker sees
        return
    v.unanswered[1] += 1
    c.of_sibling, c.pair = True, h.pair
    c.peer_cid, c.peer_port, c.guest_port = h.cid, h.port, h.to_port
    ask_guest(w, c)


cdef inline void lose_sibling(Worker *w, const Handover *h) noexcept nogil:
    """Another guest receives no more on a connection to it, if that is still there."""
    cdef Connection *c = find(vsock_of(w), h.cid, h.port, h.to_port)
    if c != NULL and c.of_sibling and c.pair == h.pair:
        lose_receiver(c)
        touch(w, c)


cdef inline void receive_siblings(Worker *w) noexcept nogil:
    """Take what the group's other workers have handed over."""
    cdef Vsock *v = vsock_of(w)
    cdef Handover *h
    cdef Handover *next
    if v.member == NULL:
        return
    h = take_handovers(v.member)
    while h != NULL:
        next = <Handover *>h.link.next
        if h.fd < 0:
            lose_sibling(w, h)
        else:
            receive_sibling(w, h)
        release(h)
        h = next
