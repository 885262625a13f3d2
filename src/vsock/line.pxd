# SPDX-License-Identifier: Apache-2.0
"""The words by which a host program asks for a connection: `CONNECT <port>` and `OK <port>`.

As Firecracker and cloud-hypervisor have them; each is a line.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    LONGEST_LINE = 32           # bytes, its end included
    MOST_PORT = 0xFFFFFFFF
    ANY_PORT = 0xFFFFFFFF       # VMADDR_PORT_ANY: nobody listens there


cdef inline int parse_connect(
    const uint8_t *text, uint32_t length, uint32_t *port
) noexcept nogil:
    """Read `CONNECT <port>` and the end of the line: bytes of it, 0 until it is whole, or -1."""
    cdef const uint8_t *word = b"CONNECT "
    cdef uint64_t number = 0
    cdef uint32_t i
    for i in range(min(length, <uint32_t>LONGEST_LINE)):
        if i < 8:
            if text[i] != word[i]:
                return -1
        elif text[i] == c"\n" and i > 8:
            port[0] = <uint32_t>number
            return <int>i + 1 if number != ANY_PORT else -1
        elif text[i] < c"0" or text[i] > c"9":
            return -1
        else:
            number = number * 10 + text[i] - c"0"
            if number > MOST_PORT:
                return -1
    return 0 if length < LONGEST_LINE else -1


cdef inline uint32_t put_number(uint8_t *out, uint32_t number) noexcept nogil:
    """Write a number in decimal: how many digits."""
    cdef uint8_t digits[10]
    cdef uint32_t n = 0, i
    while number or n == 0:
        digits[n] = c"0" + number % 10
        number //= 10
        n += 1
    for i in range(n):
        out[i] = digits[n - 1 - i]
    return n


cdef inline uint32_t write_ok(uint8_t *out, uint32_t port) noexcept nogil:
    """Write the answer `OK <port>` as a line: bytes of it."""
    cdef uint32_t n
    out[0], out[1], out[2] = c"O", c"K", c" "
    n = 3 + put_number(out + 3, port)
    out[n] = c"\n"
    return n + 1
