# SPDX-License-Identifier: Apache-2.0
# Part of ring.pyx: what this kernel's io_uring can do.

def probe_io_uring() -> dict:
    """Whether this kernel's io_uring has each operation that the data path uses, by name.

    Raises:
        OSError: There is no io_uring, or it is forbidden.
    """
    cdef io_uring ring
    cdef io_uring_probe *probe
    cdef int rc = open_uring(&ring)
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    probe = io_uring_get_probe_ring(&ring)
    try:
        if probe == NULL:
            raise OSError(EINVAL, "io_uring cannot be probed")
        return {
            "READ": bool(io_uring_opcode_supported(probe, IORING_OP_READ)),
            "READV": bool(io_uring_opcode_supported(probe, IORING_OP_READV)),
            "WRITE": bool(io_uring_opcode_supported(probe, IORING_OP_WRITE)),
            "WRITEV": bool(io_uring_opcode_supported(probe, IORING_OP_WRITEV)),
            "FSYNC": bool(io_uring_opcode_supported(probe, IORING_OP_FSYNC)),
            "FALLOCATE": bool(io_uring_opcode_supported(probe, IORING_OP_FALLOCATE)),
            "POLL_ADD": bool(io_uring_opcode_supported(probe, IORING_OP_POLL_ADD)),
            "ASYNC_CANCEL": bool(io_uring_opcode_supported(probe, IORING_OP_ASYNC_CANCEL)),
            "MSG_RING": bool(io_uring_opcode_supported(probe, IORING_OP_MSG_RING)),
        }
    finally:
        io_uring_free_probe(probe)
        io_uring_queue_exit(&ring)


def probe_discard(int fd) -> bool:
    """Whether this kernel's io_uring discards on the block device that `fd` is, open to write.

    No byte is discarded: the kernel that knows the command refuses a range without any.

    Raises:
        OSError: There is no io_uring, or it is forbidden.
    """
    cdef io_uring ring
    cdef io_uring_cqe *cqe
    cdef int32_t result = 0
    cdef int rc = open_uring(&ring)
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    prep_discard(io_uring_get_sqe(&ring), fd, 0, 0)
    rc = io_uring_submit_and_wait(&ring, 1)
    if rc >= 0 and io_uring_peek_batch_cqe(&ring, &cqe, 1) == 1:
        result = cqe.res
    io_uring_queue_exit(&ring)
    return result == -EINVAL
