# SPDX-License-Identifier: Apache-2.0
"""The socket's side of a connection: what io_uring is asked for, and what comes of it.

A host program may send descriptors along, and whoever drops one waits for as long as its file
likes.  So no socket takes any (SO_PASSRIGHTS).  Where the kernel is too old for that (before 6.16)
all that comes is looked at first, and a connection with descriptors in it ends: this thread leaves
them where they are, and closes no socket.
"""

from libc.errno cimport EAGAIN, EINTR, EMSGSIZE
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memset
from posix.fcntl cimport F_SETFL, fcntl

from sys.sockets cimport (
    MSG_CTRUNC, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, POLLERR, POLLHUP, POLLRDHUP, SHUT_RD, SHUT_WR,
    SOL_SOCKET, SO_OOBINLINE, SO_PASSRIGHTS, has_unread, setsockopt, shutdown,
    socket_state,
)
from sys.uring cimport (
    IOSQE_ASYNC, io_uring_prep_close, io_uring_prep_recv, io_uring_prep_recvmsg,
    io_uring_prep_send, io_uring_prep_sendmsg, io_uring_sqe, prep_connect,
)
from vsock.buffer cimport drop_message, first_message, first_piece, kept, pieces, room
from vsock.changes cimport (
    establish, finish, lose_receiver, reset, start_tick, touch,
)
from vsock.connection cimport (
    ACTIONS, ASKED, Action, CONNECT, CONNECTING, Connection, DRAINING, ENDING, FREE, LINE, OPEN,
    RECEIVE, RESETTING, SEND, WAITING, is_drained, is_pending,
)
from vsock.fifo cimport add
from vsock.group cimport Handover, Member, hand_over, is_free, sibling
from vsock.layouts cimport SEQ_EOR, TYPE_SEQPACKET, WILL_NOT_RECEIVE, WILL_NOT_SEND
from vsock.state cimport Vsock, vsock_of
from vsock.table cimport give_connection_back
from worker.notify cimport cancel
from worker.state cimport TAG_DEVICE, TAG_NOBODY, Worker, next_sqe, tagged

cdef extern from "<unistd.h>" nogil:
    int close(int fd)


cdef inline io_uring_sqe *ask(Worker *w, Connection *c, Action action) noexcept nogil:
    """An entry for something that the kernel is to do; the caller fills it in first."""
    c.operations[<int>action].is_pending = True
    return next_sqe(w)


cdef inline void name(io_uring_sqe *sqe, Connection *c, Action action) noexcept nogil:
    """Say what an entry is for, once it is filled in."""
    sqe.user_data = tagged(&c.operations[<int>action], TAG_DEVICE)


# ---- descriptors that nobody has asked for ----

cdef inline void refuse_descriptors(const Vsock *v, Connection *c) noexcept nogil:
    """Have a UNIX socket of a host program's bring none, or see them before they are taken."""
    cdef int no = 0, yes = 1
    if not v.looks_ahead:
        setsockopt(c.fd, SOL_SOCKET, SO_PASSRIGHTS, &no, sizeof(no))
        return
    c.may_bring = True
    setsockopt(c.fd, SOL_SOCKET, SO_OOBINLINE, &yes, sizeof(yes))   # or they are dropped unseen


cdef inline void close_socket(Worker *w, int fd) noexcept nogil:
    """Close a socket: where descriptors may lie in one, on a thread of io_uring's."""
    cdef io_uring_sqe *sqe
    if not vsock_of(w).looks_ahead:
        close(fd)
        return
    sqe = next_sqe(w)
    io_uring_prep_close(sqe, fd)
    sqe.flags |= IOSQE_ASYNC
    sqe.user_data = tagged(NULL, TAG_NOBODY)


cdef inline void look_at(Worker *w, Connection *c, uint8_t *at, uint32_t length) noexcept nogil:
    """See what has come to a stream, and whether descriptors have."""
    cdef io_uring_sqe *sqe
    c.in_pieces[0].iov_base, c.in_pieces[0].iov_len = at, length
    memset(&c.in_message, 0, sizeof(c.in_message))
    c.in_message.msg_iov, c.in_message.msg_iovlen = c.in_pieces, 1
    sqe = ask(w, c, RECEIVE)
    io_uring_prep_recvmsg(sqe, c.fd, &c.in_message, MSG_PEEK)
    name(sqe, c, RECEIVE)


cdef inline void end_look(Worker *w, Connection *c, uint32_t length) noexcept nogil:
    """What was seen can be taken, unless descriptors come with it, for which there was no room."""
    if c.in_message.msg_flags & MSG_CTRUNC:
        reset(w, c)
    else:
        c.has_looked, c.looked = True, length


# ---- from the other side ----

cdef inline void receive_message(Worker *w, Connection *c) noexcept nogil:
    """Receive one message; between siblings its first byte is a flag."""
    cdef io_uring_sqe *sqe
    cdef uint32_t flag = 1 if c.of_sibling else 0
    c.incoming.head = c.incoming.tail = 0
    c.in_pieces[0].iov_base, c.in_pieces[0].iov_len = &c.flag_in, 1
    c.in_pieces[flag].iov_base = c.incoming.base
    c.in_pieces[flag].iov_len = c.incoming.size
    memset(&c.in_message, 0, sizeof(c.in_message))
    c.in_message.msg_iov, c.in_message.msg_iovlen = c.in_pieces, 1 + flag
    sqe = ask(w, c, RECEIVE)
    io_uring_prep_recvmsg(sqe, c.fd, &c.in_message, MSG_PEEK if c.is_looking else 0)
    name(sqe, c, RECEIVE)


cdef inline void start_receiving(Worker *w, Connection *c) noexcept nogil:
    """Receive where there is room for it, and somebody who takes it."""
    cdef uint8_t *at
    cdef uint32_t length
    cdef io_uring_sqe *sqe
    if c.operations[<int>RECEIVE].is_pending or c.state == CONNECTING or c.state == DRAINING:
        return
    if c.host_shut & WILL_NOT_SEND or c.guest_shut & WILL_NOT_RECEIVE:
        return
    c.is_looking = c.may_bring and not c.has_looked
    if c.type == TYPE_SEQPACKET:
        if kept(&c.incoming) == 0:
            receive_message(w, c)
        return
    if kept(&c.incoming) > c.incoming.size // 2:
        return                  # little by little costs more than to wait for a while
    length = 1 if c.state == WAITING else room(&c.incoming, &at)
    room(&c.incoming, &at)
    if c.is_looking:
        look_at(w, c, at, length)
        return
    sqe = ask(w, c, RECEIVE)
    io_uring_prep_recv(sqe, c.fd, at, min(length, c.looked) if c.may_bring else length, 0)
    name(sqe, c, RECEIVE)


cdef inline bint has_hung_up(const Connection *c) noexcept nogil:
    """Whether the other side has closed both ways."""
    return socket_state(c.fd) & (POLLHUP | POLLERR) != 0


cdef inline void lose_sender(Worker *w, Connection *c, bint failed) noexcept nogil:
    """The other side sends no more; if it has closed, or `failed`, it takes no more either.

    One that closes later is seen by `look_for_hangup`.
    """
    cdef bint is_gone = failed or has_hung_up(c)
    c.host_shut |= WILL_NOT_SEND
    if c.state == LINE:
        finish(w, c)
    elif c.state == WAITING or (c.state == ASKED and is_gone):
        reset(w, c)
    elif is_gone:
        lose_receiver(c)
    else:
        add(&vsock_of(w).timed, c.number)
        start_tick(w)


cdef inline bint take_received(Worker *w, Connection *c, uint32_t length) noexcept nogil:
    """Keep what was received, at least a byte: whether there is something."""
    if c.type != TYPE_SEQPACKET:
        c.incoming.tail += length
    elif c.in_message.msg_flags & MSG_TRUNC:
        reset(w, c)             # longer than any that the guest could take
        return False
    else:
        c.incoming.tail = length - 1 if c.of_sibling else length
        c.is_record = c.of_sibling and c.flag_in & SEQ_EOR
    return True


cdef inline bint is_empty_message(const Connection *c) noexcept nogil:
    """Whether what was received, nothing, was that, and not the end."""
    return c.type == TYPE_SEQPACKET and not c.of_sibling and (
        not socket_state(c.fd) & (POLLRDHUP | POLLHUP | POLLERR) or has_unread(c.fd)
    )


cdef inline bint end_receiving(Worker *w, Connection *c, int32_t result) noexcept nogil:
    """Take what the kernel says of a receive: whether there is more to read of `incoming`."""
    cdef bint has_more = False
    c.has_looked = False
    if c.state == RESETTING or c.state == ENDING or c.state == DRAINING:
        pass
    elif c.is_looking and (result > 0 or (result == 0 and c.type == TYPE_SEQPACKET)):
        end_look(w, c, result)
    elif result > 0:
        has_more = take_received(w, c, result)
    elif result == -EINTR or result == -EAGAIN or (result == 0 and is_empty_message(c)):
        pass                    # again
    else:
        lose_sender(w, c, result < 0)
    if has_more and c.state == WAITING:
        c.incoming.head = c.incoming.tail = 0
        establish(w, c)
    touch(w, c)
    return has_more


cdef inline bint look_for_hangup(Worker *w, Connection *c) noexcept nogil:
    """See whether the other side, which sends no more, has closed meanwhile: whether that is to be
    asked again.

    io_uring does not tell: it takes the half that is closed for the whole.
    """
    if c.host_shut != WILL_NOT_SEND or (c.state != OPEN and c.state != ASKED):
        return False
    if not has_hung_up(c):
        return True
    if c.state == ASKED:
        reset(w, c)
    else:
        lose_receiver(c)
        touch(w, c)
    return False


# ---- to the other side ----

cdef inline void send_message(Worker *w, Connection *c) noexcept nogil:
    """Send the first message, if all of it is here; between siblings behind a flag."""
    cdef io_uring_sqe *sqe
    cdef bint is_record = False
    cdef uint32_t flag = 1 if c.of_sibling else 0
    c.sending = first_message(&c.outgoing, &is_record)
    if c.sending == 0:
        return
    c.flag_out = SEQ_EOR if is_record else 0
    c.out_pieces[0].iov_base, c.out_pieces[0].iov_len = &c.flag_out, 1
    memset(&c.out_message, 0, sizeof(c.out_message))
    c.out_message.msg_iov = c.out_pieces
    c.out_message.msg_iovlen = flag + pieces(&c.outgoing, c.sending, c.out_pieces + flag)
    sqe = ask(w, c, SEND)
    io_uring_prep_sendmsg(sqe, c.fd, &c.out_message, MSG_NOSIGNAL)
    name(sqe, c, SEND)


cdef inline void start_sending(Worker *w, Connection *c) noexcept nogil:
    """Send what is kept, unless something is being sent or nobody takes it."""
    cdef uint8_t *at
    cdef uint32_t length
    cdef io_uring_sqe *sqe
    if c.operations[<int>SEND].is_pending or c.host_shut & WILL_NOT_RECEIVE:
        return
    if c.state != OPEN and c.state != DRAINING:
        return
    if c.first_sent < c.first_count:
        at, length = c.first + c.first_sent, c.first_count - c.first_sent
    elif c.type == TYPE_SEQPACKET:
        send_message(w, c)
        return
    else:
        length = first_piece(&c.outgoing, &at)
    if length:
        sqe = ask(w, c, SEND)
        io_uring_prep_send(sqe, c.fd, at, length, MSG_NOSIGNAL)
        name(sqe, c, SEND)


cdef inline void take_sent(Connection *c, uint32_t length) noexcept nogil:
    """Let go of what was sent, and give credit back for it."""
    if c.first_sent < c.first_count:
        c.first_sent += length
    elif c.type == TYPE_SEQPACKET:
        c.credit.fwd_cnt += c.sending
        drop_message(&c.outgoing, c.sending)
    else:
        c.credit.fwd_cnt += length
        c.outgoing.head += length


cdef inline void end_sending(Worker *w, Connection *c, int32_t result) noexcept nogil:
    """Take what the kernel says of a send."""
    if c.host_shut & WILL_NOT_RECEIVE or c.state == RESETTING or c.state == ENDING:
        pass
    elif result >= 0:
        take_sent(c, result)
    elif result == -EMSGSIZE:
        reset(w, c)             # the kernel has less room for a message than was promised
    elif result != -EINTR and result != -EAGAIN:
        lose_receiver(c)
    touch(w, c)


cdef inline void tell_sibling(Vsock *v, const Connection *c) noexcept nogil:
    """Have a sibling know that the guest receives no more, or find out when it sends next."""
    cdef Member *to = sibling(v.member, c.peer_cid)
    cdef Handover *out = &v.member.shuts[c.number]
    if to != NULL and is_free(out):
        out.fd, out.pair = -1, c.pair
        out.cid, out.port, out.to_port = v.cid, c.guest_port, c.peer_port
        hand_over(to, out)


cdef inline void pass_shut(Vsock *v, Connection *c) noexcept nogil:
    """Have the other side know what the guest will not do any more; what it has sent comes first.
    """
    if c.guest_shut & WILL_NOT_RECEIVE and not c.shut & WILL_NOT_RECEIVE:
        c.shut |= WILL_NOT_RECEIVE
        shutdown(c.fd, SHUT_RD)
        if c.of_sibling:
            tell_sibling(v, c)
    if c.guest_shut & WILL_NOT_SEND and not c.shut & WILL_NOT_SEND and is_drained(c):
        c.shut |= WILL_NOT_SEND
        shutdown(c.fd, SHUT_WR)


# ---- beginning and end ----

cdef inline void start_connecting(Worker *w, Connection *c) noexcept nogil:
    """Connect the socket to the address."""
    cdef io_uring_sqe *sqe = ask(w, c, CONNECT)
    prep_connect(sqe, c.fd, &c.address, c.address_length)
    name(sqe, c, CONNECT)


cdef inline void end_connecting(Worker *w, Connection *c, int32_t result) noexcept nogil:
    """The socket is connected, or nobody is there."""
    if c.state == CONNECTING and result == 0:
        fcntl(c.fd, F_SETFL, 0)     # from now on io_uring waits
        establish(w, c)
    elif c.state == CONNECTING:
        reset(w, c)
    touch(w, c)


cdef inline void end_socket(Worker *w, Connection *c) noexcept nogil:
    """Close the socket once the kernel has let go of it; then the connection is free, unless the
    guest has to see OP_RST first.
    """
    cdef uint32_t i
    if is_pending(c):
        if not c.is_cancelled:
            c.is_cancelled = True
            for i in range(<uint32_t>ACTIONS):
                if c.operations[i].is_pending:
                    cancel(w, tagged(&c.operations[i], TAG_DEVICE))
        return
    if c.fd >= 0:
        close_socket(w, c.fd)
        c.fd = -1
    if c.state == ENDING:
        give_connection_back(vsock_of(w), c)


cdef inline void drive(Worker *w, Connection *c) noexcept nogil:
    """See to the socket of a connection on which something has changed."""
    if c.state == FREE:
        return
    if c.state == DRAINING and is_drained(c):
        finish(w, c)
    if c.state == RESETTING or c.state == ENDING:
        end_socket(w, c)
        return
    start_receiving(w, c)
    start_sending(w, c)
    if c.state == OPEN:
        pass_shut(vsock_of(w), c)
