# SPDX-License-Identifier: Apache-2.0
"""What Python sees of a socket device on the data path: its part of a worker, and its group.

A worker (`blkd.ring`) calls the functions of `vsock.serving`, and knows no more of sockets.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from sys.atomics cimport load_acquire_u32, load_relaxed_u64
from sys.pages cimport munmap, reserve
from sys.sockets cimport sockaddr_storage
from vsock.connection cimport (
    ACTIONS, Action, BUFFER_BYTES, CONNECTION_BYTES, Connection, FREE,
)
from vsock.fifo cimport CONNECTIONS
from vsock.group cimport MEMBERS, Member
from vsock.layouts cimport RX, TX
from vsock.serving cimport be_vsock
from vsock.state cimport Choices, Forward, MOST_FORWARDS, MOST_PATH, Vsock
from worker.state cimport DEVICE_CAPSULE

cdef enum:
    LONGEST_CHAIN = 1 << 15     # descriptors: it keeps none


# ---- Python face ----

import os
import struct

MOST_CONNECTIONS = CONNECTIONS  # of one guest
MOST_MEMBERS = MEMBERS          # of a group
MOST_PATH_BYTES = MOST_PATH     # of `path`, to which `_<port>` is added
MOST_FORWARD_COUNT = MOST_FORWARDS


cdef class Group:
    """Guests that reach each other by their CIDs.  It stays as long as any of their parts does."""

    cdef Member *members
    cdef uint32_t count

    def __cinit__(self, cids):
        cdef uint32_t i
        if len(cids) > MEMBERS or len(set(cids)) != len(cids):
            raise ValueError(f"a group of {cids}")
        self.members = <Member *>calloc(max(len(cids), 1), sizeof(Member))
        if self.members == NULL:
            raise MemoryError
        self.count = len(cids)
        for i in range(self.count):
            self.members[i].cid, self.members[i].arrivals.fd = cids[i], -1
        for i in range(self.count):
            self.members[i].others, self.members[i].count = self.members, self.count
            self.members[i].arrivals.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.count):
            if self.members[i].arrivals.fd >= 0:
                os.close(self.members[i].arrivals.fd)
        free(self.members)

    cdef Member *member(self, uint32_t cid) except NULL:
        cdef uint32_t i
        for i in range(self.count):
            if self.members[i].cid == cid:
                return &self.members[i]
        raise ValueError(f"CID {cid} is not in the group")


cdef class VsockPart:
    """A socket device's part of the one `ring.Worker` that serves it, with up to `vrings` vrings.

    It has up to `most` connections at a time.

    Host programs connect to the listening sockets `stream_fd` and `message_fd`, borrowed, -1 for
    none.  Connections of the guest to port P of the host go where `forwards` says, by pairs of a
    port and an address as the kernel has it, else to the socket `path` + "_P"; b"" for none.
    With `looks_ahead` descriptors that come along are looked for, as the kernel cannot refuse them.
    """

    cdef Vsock vsock
    cdef Group group
    cdef void *reserved
    cdef size_t bytes_reserved
    cdef readonly object capsule    # as `ring.Worker` takes it

    def __cinit__(self, *, uint32_t vrings, uint32_t largest, uint32_t cid, uint32_t most,
                  int stream_fd, int message_fd, bytes path not None, forwards, Group group,
                  bint looks_ahead):
        cdef Vsock *v = &self.vsock
        be_vsock(&v.device)
        v.device.vrings, v.device.largest, v.device.longest_chain = vrings, largest, LONGEST_CHAIN
        v.cid, v.looks_ahead = cid, looks_ahead
        v.most = min(most, <uint32_t>CONNECTIONS)
        v.listeners[0], v.listeners[1] = stream_fd, message_fd
        if len(path) > MOST_PATH or len(forwards) > MOST_FORWARDS:
            raise ValueError("the path is too long, or there are too many ports to forward")
        v.path_length = len(path)
        memcpy(v.path, <const char *>path, v.path_length)
        for port, address in forwards:
            add_forward(v, port, address)
        self.group = group
        v.member = NULL if group is None else group.member(cid)
        self.lay_out()
        self.capsule = PyCapsule_New(&v.device, DEVICE_CAPSULE, NULL)

    cdef void lay_out(self) except *:
        """Give every connection its buffers: pages that cost memory once they are touched."""
        cdef size_t table = CONNECTIONS * sizeof(Connection)
        cdef uint8_t *at
        cdef Connection *c
        cdef uint32_t i, action
        table += -table % 4096
        self.bytes_reserved = table + <size_t>CONNECTIONS * CONNECTION_BYTES
        self.reserved = reserve(self.bytes_reserved)
        if self.reserved == NULL:
            raise MemoryError(f"cannot reserve {self.bytes_reserved} bytes")
        self.vsock.connections = <Connection *>self.reserved
        at = <uint8_t *>self.reserved + table
        for i in range(<uint32_t>CONNECTIONS):
            c = &self.vsock.connections[i]
            c.number, c.fd = i, -1
            c.outgoing.base, c.incoming.base = at, at + BUFFER_BYTES
            c.marks = <uint64_t *>(at + 2 * BUFFER_BYTES)
            for action in range(<uint32_t>ACTIONS):
                c.operations[action].action = <Action>action
                c.operations[action].number = i
            self.vsock.free[CONNECTIONS - 1 - i] = i
            at += CONNECTION_BYTES
        self.vsock.free_count = self.vsock.most

    def __dealloc__(self):
        if self.reserved != NULL:
            munmap(self.reserved, self.bytes_reserved)

    def left_open(self) -> list:
        """Sockets that the worker has left open at its end; to be closed as foreign ones."""
        cdef uint32_t i
        cdef Connection *c = self.vsock.connections
        if not load_acquire_u32(&self.vsock.has_left):
            return []
        return [
            c[i].fd for i in range(<uint32_t>CONNECTIONS) if c[i].state != FREE and c[i].fd >= 0
        ]

    def counters(self, uint32_t ring) -> dict:
        """Packets and bytes of payload of one vring since this was made, and what went wrong."""
        cdef Vsock *v = &self.vsock
        if ring == RX:
            return {
                "packets": load_relaxed_u64(&v.counters[<int>RX].packets),
                "bytes": load_relaxed_u64(&v.counters[<int>RX].bytes),
                "resets": load_relaxed_u64(&v.counters[<int>RX].resets),
                "connections": load_relaxed_u64(&v.open_count),
            }
        if ring == TX:
            return {
                "packets": load_relaxed_u64(&v.counters[<int>TX].packets),
                "bytes": load_relaxed_u64(&v.counters[<int>TX].bytes),
                "given_up": load_relaxed_u64(&v.counters[<int>TX].given_up),
                "malformed": load_relaxed_u64(&v.counters[<int>TX].malformed),
            }
        return {}


cdef void add_forward(Vsock *v, uint32_t port, bytes address) except *:
    """Have connections to this port go to an address, of any family."""
    cdef Forward *forward = &v.forwards[v.forward_count]
    if not 2 < len(address) <= <Py_ssize_t>sizeof(sockaddr_storage):
        raise ValueError(f"an address of {len(address)} bytes")
    memset(&forward.address, 0, sizeof(sockaddr_storage))
    memcpy(&forward.address, <const char *>address, len(address))
    forward.port, forward.address_length = port, len(address)
    forward.family = struct.unpack_from("=H", address)[0]
    v.forward_count += 1


def choices(*, uint64_t features, uint64_t epoch) -> bytes:
    """What the driver has chosen, as `ring.Worker.configure` takes it.

    Another `epoch` than before ends every connection: the front end has left.
    """
    cdef Choices out
    memset(&out, 0, sizeof(out))
    out.features, out.epoch = features, epoch
    return (<char *>&out)[:sizeof(out)]
