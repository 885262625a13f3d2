# SPDX-License-Identifier: Apache-2.0
"""What Python sees of a network device on the data path: its part of a worker.

A worker (`blkd.ring`) calls the functions of `net.serving`, and knows no more of network devices.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from net.layouts cimport (
    NET_CTRL_GUEST_OFFLOADS, NET_CTRL_MQ, NET_ERR, NET_GSO_TCPV4, NET_GSO_TCPV6, NET_GSO_UDP,
    NET_OK,
)
from net.serving cimport be_net
from net.state cimport (
    Buffer, LONGEST_PACKET, MAX_IOVECS, NO_CONTROL, Net, NetParameters, NetVring, REPORT_COMMAND,
    REPORT_TAP_GONE,
)
from sys.atomics cimport load_relaxed_u64
from sys.pages cimport munmap, reserve
from sys.uring cimport iovec
from worker.state cimport DEVICE_CAPSULE


# ---- Python face ----

TAP_GONE = REPORT_TAP_GONE      # as `ring.Worker.answers` has it: the TAP was deleted
COMMAND = REPORT_COMMAND        # ... the control queue has a command, see `NetPart.command`
PAIRS, OFFLOADS = NET_CTRL_MQ, NET_CTRL_GUEST_OFFLOADS     # classes of commands
OK, ERROR = NET_OK, NET_ERR

cdef dict SEGMENTATIONS = {"tcp4": NET_GSO_TCPV4, "tcp6": NET_GSO_TCPV6, "udp": NET_GSO_UDP}


cdef class NetPart:
    """A network device's part of one `ring.Worker`.

    `vrings` has for each vring of the worker the device's number of it, the descriptor of its TAP
    queue, borrowed, or -1 without one, and the flags to read and write that with.  Each vring has
    up to `largest` descriptors.
    """

    cdef Net net
    cdef void *reserved
    cdef Py_ssize_t bytes_reserved
    cdef readonly object capsule    # as `ring.Worker` takes it

    def __cinit__(self, vrings, *, uint32_t largest, uint32_t longest_chain):
        cdef NetVring *v
        cdef uint32_t i
        cdef size_t of_vring = (
            LONGEST_PACKET + largest * sizeof(Buffer) + (MAX_IOVECS + 1) * sizeof(iovec)
        )
        be_net(&self.net.device)
        self.net.device.vrings, self.net.device.largest = len(vrings), largest
        self.net.device.longest_chain = longest_chain
        self.net.vrings = <NetVring *>calloc(max(len(vrings), 1), sizeof(NetVring))
        if self.net.vrings == NULL:
            raise MemoryError
        self.bytes_reserved = max(len(vrings), 1) * of_vring
        self.reserved = reserve(self.bytes_reserved)
        if self.reserved == NULL:
            raise MemoryError(f"cannot reserve {self.bytes_reserved} bytes")
        for i, (index, fd, flags) in enumerate(vrings):
            v = &self.net.vrings[i]
            v.index, v.fd, v.io_flags = index, fd, flags
            lay_out(v, <uint8_t *>self.reserved + i * of_vring, largest)
        self.capsule = PyCapsule_New(&self.net.device, DEVICE_CAPSULE, NULL)

    def __dealloc__(self):
        if self.reserved != NULL:
            munmap(self.reserved, self.bytes_reserved)
        free(self.net.vrings)

    def counters(self, uint32_t ring) -> dict:
        """What went through one vring since this was made, by name."""
        cdef const NetVring *v = self.vring(ring)
        return {
            "packets": load_relaxed_u64(&v.counters.packets),
            "bytes": load_relaxed_u64(&v.counters.bytes),
            "malformed": load_relaxed_u64(&v.counters.malformed),
            "refused": load_relaxed_u64(&v.counters.refused),
            "oversized": load_relaxed_u64(&v.counters.oversized),
            "copied": load_relaxed_u64(&v.counters.copied),
            "commands": load_relaxed_u64(&v.counters.commands),
        }

    def command(self, uint32_t ring) -> tuple:
        """The last command of a control queue, once reported: its number, class and value."""
        cdef const NetVring *v = self.vring(ring)
        return v.request.number, v.request.type, v.request.value

    cdef const NetVring *vring(self, uint32_t ring) except NULL:
        if ring >= self.net.device.vrings:
            raise IndexError(f"ring {ring} of {self.net.device.vrings}")
        return &self.net.vrings[ring]


cdef void lay_out(NetVring *v, uint8_t *at, uint32_t largest) noexcept:
    """Give a vring's part its tables, out of what was reserved for it."""
    v.buffers = <Buffer *>at
    v.iov = <iovec *>(v.buffers + largest)
    v.spill = <uint8_t *>(v.iov + MAX_IOVECS + 1)


def parameters(*, uint32_t header_bytes, bint mergeable, bint checksums, bint ecn, sends,
               bint guest_checksums, bint guest_ecn, takes, uint32_t longest, control,
               uint64_t answered, uint8_t answer) -> bytes:
    """How the device serves, as `ring.Worker.configure` takes it.

    The guest may send packets to be cut up in the ways `sends`, of "tcp4", "tcp6" and "udp", and
    takes those of `takes`, and others of up to `longest` bytes, 0 for any.  `control` is the
    device's number of the control queue, or None, and `answer` that to the command of number
    `answered`.
    """
    cdef NetParameters out
    memset(&out, 0, sizeof(out))
    out.header_bytes, out.mergeable, out.checksums = header_bytes, mergeable, checksums
    out.gso_types = sum(1 << SEGMENTATIONS[name] for name in sends)
    out.guest_gso_types = sum(1 << SEGMENTATIONS[name] for name in takes)
    out.ecn = ecn
    out.guest_checksums, out.guest_ecn, out.longest = guest_checksums, guest_ecn, longest
    out.control = NO_CONTROL if control is None else control
    out.answered, out.answer = answered, answer
    return (<char *>&out)[:sizeof(out)]
