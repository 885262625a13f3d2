# SPDX-License-Identifier: Apache-2.0
"""One connection: where it stands, what is due on it, and what is kept of either side.

All fields are the worker's.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from sys.sockets cimport msghdr, sockaddr_storage
from sys.uring cimport iovec
from vsock.buffer cimport Buffer, first_message, kept
from vsock.credit cimport Credit, is_update_due, peer_free
from vsock.layouts cimport TYPE_SEQPACKET, WILL_NOT_RECEIVE, WILL_NOT_SEND
from vsock.line cimport LONGEST_LINE

cdef enum:
    BUFFER_BYTES = 1 << 18      # from the guest: as much as Linux grants; the longest message
    STREAM_BYTES = 1 << 16      # to the guest, of a stream
    CONNECTION_BYTES = 2 * BUFFER_BYTES + 2 * BUFFER_BYTES // 8     # with the marks of messages


cdef enum State:
    FREE
    LINE                        # a host program has connected: its CONNECT has not come whole
    ASKED                       # the guest is asked, and has not answered
    CONNECTING                  # the guest has asked: the socket is being connected
    WAITING                     # ... of a sibling, who is asked in turn
    OPEN
    DRAINING                    # the guest is done: what it had sent goes to the other side
    RESETTING                   # the other side is done: the guest is to see OP_RST
    ENDING                      # both are: the socket closes once the kernel has let go of it


cdef enum DueBit:
    DUE_REQUEST = 1             # packets that the guest is to see
    DUE_RESPONSE = 2
    DUE_RST = 4
    DUE_CREDIT = 8              # it has asked for ours


cdef enum Action:
    RECEIVE                     # what io_uring does for a connection
    SEND
    CONNECT
    ACTIONS
    ACCEPT                      # what it does for all: a listener has somebody
    ARRIVAL                     # a sibling has
    TICK


cdef struct Operation:
    # What a completion tagged TAG_DEVICE points to: as long, 16 bytes, as leaves room for the tag.
    Action action
    uint32_t number             # of the connection, or of the listener
    uint64_t is_pending         # the kernel has it


cdef struct Connection:
    uint32_t number
    State state
    uint16_t type
    uint32_t peer_cid           # who the guest takes the other side for
    uint32_t peer_port
    uint32_t guest_port
    bint is_listed              # found by these three
    uint16_t next               # in its list of those found alike, plus 1
    bint of_sibling             # the other end of the socket is another guest's
    uint64_t pair               # ... and has the same number
    int fd
    bint may_bring              # descriptors of a host program's may come with its data
    bint is_looking             # RECEIVE leaves what there is where it is
    bint has_looked             # ... and has seen that none come with the next `looked` bytes
    uint32_t looked
    uint32_t due                # DueBits
    uint8_t guest_shut          # what the guest will not do any more: WILL_NOT_...
    uint8_t host_shut           # what the other side will not
    uint8_t told_shut           # ... as the guest was told
    uint8_t shut                # what was done to the socket likewise
    bint is_cancelled
    uint64_t deadline           # nanoseconds, or 0
    Credit credit
    uint64_t *marks             # of the ends of messages and of records in `outgoing`
    Buffer outgoing             # from the guest
    Buffer incoming             # to the guest
    bint is_record              # the message in `incoming` ends one
    uint32_t message_sent       # bytes of it that the guest has got
    uint32_t sending            # bytes of a message that is being sent, without its flag
    uint8_t first[LONGEST_LINE]     # what the other side gets before anything else
    uint32_t first_count
    uint32_t first_sent
    uint8_t flag_in             # of a message between siblings: its first byte
    uint8_t flag_out
    iovec in_pieces[2]
    iovec out_pieces[3]
    msghdr in_message
    msghdr out_message
    sockaddr_storage address    # to connect to
    uint32_t address_length
    Operation operations[ACTIONS]


cdef inline uint8_t shut_due(const Connection *c) noexcept nogil:
    """What the other side will not do any more and the guest can be told now: all that was sent
    comes first.
    """
    cdef uint8_t shut = c.host_shut
    if kept(&c.incoming):
        shut &= ~WILL_NOT_SEND
    return shut if shut & ~c.told_shut else 0


cdef inline bint has_data(const Connection *c) noexcept nogil:
    """Whether there is something for the guest, which takes it."""
    return kept(&c.incoming) != 0 and not c.guest_shut & WILL_NOT_RECEIVE


cdef inline bint has_packet(const Connection *c) noexcept nogil:
    """Whether the guest is to see a packet of this connection now."""
    if c.due:
        return True
    if c.state != OPEN:
        return False
    if has_data(c) and (peer_free(&c.credit) or not c.credit.asked):
        return True
    return shut_due(c) != 0 or is_update_due(&c.credit)


cdef inline bint is_pending(const Connection *c) noexcept nogil:
    """Whether the kernel is at something of it."""
    cdef uint32_t i
    for i in range(<uint32_t>ACTIONS):
        if c.operations[i].is_pending:
            return True
    return False


cdef inline bint has_to_send(const Connection *c) noexcept nogil:
    """Whether something of the guest's can go to the other side: of messages, a whole one."""
    cdef bint is_record
    if c.type == TYPE_SEQPACKET:
        return first_message(&c.outgoing, &is_record) != 0
    return kept(&c.outgoing) != 0


cdef inline bint is_drained(const Connection *c) noexcept nogil:
    """Whether all that the guest has sent is with the other side, or nobody takes it.

    A message whose end never came is none.
    """
    if c.host_shut & WILL_NOT_RECEIVE:
        return True
    return (
        c.first_sent == c.first_count and not c.operations[<int>SEND].is_pending
        and not has_to_send(c)
    )
