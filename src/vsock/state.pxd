# SPDX-License-Identifier: Apache-2.0
"""What a socket device keeps for its worker: its connections, and whose turn is next."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from sys.clock cimport KernelTimespec
from sys.sockets cimport sockaddr_storage
from vsock.connection cimport Connection, Operation
from vsock.fifo cimport CONNECTIONS, Fifo
from vsock.group cimport Member
from vsock.replies cimport Replies
from worker.state cimport Device, Worker

cdef enum:
    MOST_FORWARDS = 64
    MOST_PATH = 96              # bytes of --uds: a port follows it
    LISTENERS = 2               # of streams; of messages
    BUCKETS = 2 * CONNECTIONS


cdef struct Forward:
    uint32_t port
    int family
    uint32_t address_length
    sockaddr_storage address


cdef struct Choices:
    # What Worker.configure is given.
    uint64_t features           # that the driver has chosen
    uint64_t epoch              # another one: the front end has left, or has reset the device


cdef struct Counters:
    # Worker; read by the control thread.
    uint64_t packets
    uint64_t bytes              # of payload
    uint64_t resets             # connections that ended, or never began, by OP_RST of ours
    uint64_t malformed          # packets that were dropped
    uint64_t given_up           # connections that ended before the other side had read all


cdef struct Vsock:
    Device device               # has to be the first
    uint32_t cid                # the guest's; this and the next are set before the worker runs
    uint8_t path[MOST_PATH]     # of the sockets of the host, without their ports; empty for none
    uint32_t path_length
    int listeners[LISTENERS]    # -1 for none
    Forward forwards[MOST_FORWARDS]
    uint32_t forward_count
    bint looks_ahead            # the kernel cannot refuse descriptors that come to a UNIX socket
    Member *member              # of a group
    Connection *connections     # CONNECTIONS of them
    # All below are the worker's.
    Choices choices
    Counters counters[2]        # of rx and tx
    uint32_t unanswered[2]      # connections in LINE and ASKED: of host programs, of siblings
    uint64_t open_count         # connections; read by the control thread
    uint16_t free[CONNECTIONS]
    uint32_t free_count
    uint32_t most               # connections, before the worker runs
    uint16_t buckets[BUCKETS]   # a connection's number plus 1, or 0
    uint32_t next_port          # of a host program
    uint32_t pairs              # made so far
    Fifo ready                  # the guest may be due a packet
    Fifo touched                # something may be to do with the socket
    Fifo timed                  # a deadline may stand
    Replies replies
    Operation accepts[LISTENERS]
    Operation arrival
    Operation tick
    KernelTimespec tick_length
    uint32_t unknown            # bits of rx and tx: not started since the front end came
    uint32_t unused             # ... whose driver had not used them when they started, both lately
    uint32_t has_left           # it has ended, with its sockets open; read by the control thread
    bint owes_reset             # the driver knows of connections that are no more


cdef inline Vsock *vsock_of(const Worker *w) noexcept nogil:
    return <Vsock *>w.device
