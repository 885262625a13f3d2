# SPDX-License-Identifier: Apache-2.0
"""USDT probes of the provider `blkd`: places at which a tracer may look at a running process.

Each is a nop, and a note in the extension's file of where its arguments are then: in whatever
register or field they are anyway, so that nothing is prepared for a tracer that is not there.
The notes are laid out as <sys/sdt.h> of SystemTap does it, which bpftrace, perf and gdb read.
That header itself is not used: gcc takes each of its probes for dozens of instructions, and no
longer puts the functions that have one into their callers.  `docs/monitoring.md` has the probes
for who traces.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #if defined(__x86_64__) || defined(__aarch64__)
    #define BLKD_HAS_PROBES 1

    /* An argument's bytes, negative where it is signed, and where it is. */
    #define blkd_operand(n, x) \
        [size##n] "i" (((__typeof__(x))-1 < 1 ? -1 : 1) * (int)sizeof(x)), [at##n] "nor" (x)
    #define blkd_described(n) "%c[size" #n "]@%[at" #n "]"

    /* `inline`: gcc counts the size of this as that of one instruction. */
    #define blkd_probe(name, described, ...) \
        __asm__ __volatile__ __inline__ ( \
            "990: nop\\n" \
            ".pushsection .note.stapsdt, \\"?\\", \\"note\\"\\n" \
            ".balign 4\\n" \
            ".4byte 992f - 991f, 994f - 993f, 3\\n" \
            "991: .asciz \\"stapsdt\\"\\n" \
            "992: .balign 4\\n" \
            "993: .8byte 990b, _.stapsdt.base, 0\\n" \
            ".asciz \\"blkd\\", \\"" name "\\", \\"" described "\\"\\n" \
            "994: .balign 4\\n" \
            ".popsection\\n" \
            ".ifndef _.stapsdt.base\\n" \
            ".pushsection .stapsdt.base, \\"aG\\", \\"progbits\\", .stapsdt.base, comdat\\n" \
            ".weak _.stapsdt.base\\n" \
            ".hidden _.stapsdt.base\\n" \
            "_.stapsdt.base: .space 1\\n" \
            ".size _.stapsdt.base, 1\\n" \
            ".popsection\\n" \
            ".endif\\n" \
            :: __VA_ARGS__)

    #define blkd_probe_1(name, a) blkd_probe(name, blkd_described(1), blkd_operand(1, a))
    #define blkd_probe_5(name, a, b, c, d, e) \
        blkd_probe( \
            name, \
            blkd_described(1) " " blkd_described(2) " " blkd_described(3) " " \
            blkd_described(4) " " blkd_described(5), \
            blkd_operand(1, a), blkd_operand(2, b), blkd_operand(3, c), \
            blkd_operand(4, d), blkd_operand(5, e))
    #else
    #define BLKD_HAS_PROBES 0
    #define blkd_probe_1(name, ...) ((void)0)
    #define blkd_probe_5(name, ...) ((void)0)
    #endif

    #define blkd_request_submit(...) blkd_probe_5("request__submit", __VA_ARGS__)
    #define blkd_request_complete(...) blkd_probe_5("request__complete", __VA_ARGS__)
    #define blkd_throttle(...) blkd_probe_5("throttle", __VA_ARGS__)
    #define blkd_release(...) blkd_probe_5("release", __VA_ARGS__)
    #define blkd_hold(...) blkd_probe_5("hold", __VA_ARGS__)
    #define blkd_kick(...) blkd_probe_1("kick", __VA_ARGS__)
    #define blkd_call(...) blkd_probe_1("call", __VA_ARGS__)
    """
    bint HAS_PROBES "BLKD_HAS_PROBES"
    # `vring` is the device's number of it, `id` the chain's in it: a request's own while it is in
    # flight.  `type` is virtio-blk's, or UNKNOWN_TYPE.

    # A request is given to the engine, perhaps once more.  DISCARD and WRITE_ZEROES have 0 for
    # offset and bytes, but where a range of theirs was held and is tried again.
    void probe_submit "blkd_request_submit"(
        uint32_t vring, uint32_t id, uint32_t type, uint64_t offset, uint64_t bytes
    ) noexcept nogil
    # A request is answered: the data moved, and the status that the guest sees.
    void probe_complete "blkd_request_complete"(
        uint32_t vring, uint32_t id, uint32_t type, uint64_t bytes, uint8_t status
    ) noexcept nogil
    # A request is queued, since a limit does not let it go on yet.
    void probe_throttle "blkd_throttle"(
        uint32_t vring, uint32_t id, uint32_t type, uint64_t offset, uint64_t bytes
    ) noexcept nogil
    # ... and goes on, after so many nanoseconds.
    void probe_release "blkd_release"(
        uint32_t vring, uint32_t id, uint32_t type, uint64_t bytes, uint64_t ns
    ) noexcept nogil
    # A request has failed and is held: the errno, or 0 where the image ended before it.
    void probe_hold "blkd_hold"(
        uint32_t vring, uint32_t id, uint32_t type, uint64_t offset, int32_t error
    ) noexcept nogil
    # The driver's kick has come.
    void probe_kick "blkd_kick"(uint32_t vring) noexcept nogil
    # A call is queued for the driver.
    void probe_call "blkd_call"(uint32_t vring) noexcept nogil
