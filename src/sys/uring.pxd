# SPDX-License-Identifier: Apache-2.0
"""The part of liburing that blkd uses; every function returns -errno on failure.

liburing 2.3 is the oldest served: it declares io_uring_enable_rings and
io_uring_register_restrictions but does not export them, so they are called here.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from posix.types cimport off_t


cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "<liburing.h>" nogil:
    """
    #include <errno.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #ifndef RWF_DSYNC
    #define RWF_DSYNC 0x00000002
    #endif
    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 0x00000008
    #endif

    /* Discard on a block device (Linux 6.12; liburing has it from 2.8 on, and older kernel
       headers lack the numbers and the name of the entry's field for the length). */
    #define BLKD_OP_URING_CMD 46
    #define BLKD_CMD_DISCARD 0x1200     /* BLOCK_URING_CMD_DISCARD: _IO(0x12, 0) */
    #define BLKD_SQE_ADDR3 48           /* bytes before it */
    static inline void blkd_prep_discard(
        struct io_uring_sqe *sqe, int fd, uint64_t offset, uint64_t n
    ) {
        uint32_t command = BLKD_CMD_DISCARD;
        memset(sqe, 0, sizeof(*sqe));
        sqe->opcode = BLKD_OP_URING_CMD;
        sqe->fd = fd;
        memcpy(&sqe->off, &command, sizeof(command));   /* cmd_op shares its place */
        sqe->addr = offset;
        memcpy((char *)sqe + BLKD_SQE_ADDR3, &n, sizeof(n));
    }

    /* An address of any family: liburing wants the type that has no size. */
    static inline void blkd_prep_connect(
        struct io_uring_sqe *sqe, int fd, const void *address, uint32_t length
    ) {
        io_uring_prep_connect(sqe, fd, address, length);
    }

    /* Completions to take, or to be had for a call (IORING_SETUP_TASKRUN_FLAG). */
    static inline int blkd_uring_has_news(const struct io_uring *ring) {
        return *ring->cq.khead != __atomic_load_n(ring->cq.ktail, __ATOMIC_RELAXED)
            || __atomic_load_n(ring->sq.kflags, __ATOMIC_RELAXED)
               & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
    }

    /* What a ring may do from now on: operations and registrations by a bit each, and flags of
       entries.  It was made disabled, and serves afterwards the thread that calls: 1, or 0 where
       the kernel does not restrict it, or -errno. */
    static inline int blkd_uring_enable(
        const struct io_uring *ring, uint64_t operations, uint32_t registrations, uint8_t flags
    ) {
        struct io_uring_restriction allowed[64 + 32 + 1];
        unsigned count = 0;
        int i, is_restricted;
        memset(allowed, 0, sizeof(allowed));
        for (i = 0; i < 64; i++)
            if (operations >> i & 1) {
                allowed[count].opcode = IORING_RESTRICTION_SQE_OP;
                allowed[count++].sqe_op = i;
            }
        for (i = 0; i < 32; i++)
            if (registrations >> i & 1) {
                allowed[count].opcode = IORING_RESTRICTION_REGISTER_OP;
                allowed[count++].register_op = i;
            }
        allowed[count].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
        allowed[count++].sqe_flags = flags;
        is_restricted = syscall(__NR_io_uring_register, ring->ring_fd,
                                IORING_REGISTER_RESTRICTIONS, allowed, count) == 0;
        if (syscall(__NR_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS,
                    NULL, 0) < 0)
            return -errno;
        return is_restricted;
    }
    static inline int blkd_uring_fd(const struct io_uring *ring) {
        return ring->ring_fd;
    }
    """
    enum:
        RWF_DSYNC
        RWF_NOWAIT
        IORING_SETUP_CQSIZE
        IORING_SETUP_SINGLE_ISSUER
        IORING_SETUP_SUBMIT_ALL
        IORING_SETUP_DEFER_TASKRUN
        IORING_SETUP_TASKRUN_FLAG
        IORING_SETUP_R_DISABLED
        IORING_CQE_F_MORE
        IOSQE_ASYNC
        IOSQE_CQE_SKIP_SUCCESS
        IORING_FSYNC_DATASYNC
        IORING_OP_ACCEPT
        IORING_OP_ASYNC_CANCEL
        IORING_OP_CLOSE
        IORING_OP_CONNECT
        IORING_OP_FALLOCATE
        IORING_OP_FSYNC
        IORING_OP_MSG_RING
        IORING_OP_POLL_ADD
        IORING_OP_READ
        IORING_OP_READV
        IORING_OP_READ_FIXED
        IORING_OP_RECV
        IORING_OP_RECVMSG
        IORING_OP_SEND
        IORING_OP_SENDMSG
        IORING_OP_TIMEOUT
        IORING_OP_URING_CMD "BLKD_OP_URING_CMD"
        IORING_OP_WRITE
        IORING_OP_WRITEV
        IORING_OP_WRITE_FIXED
        IORING_REGISTER_BUFFERS
        IORING_UNREGISTER_BUFFERS
        IORING_REGISTER_EVENTFD
        IORING_UNREGISTER_EVENTFD

    cdef struct io_uring_params:
        uint32_t flags
        uint32_t features
        uint32_t cq_entries

    cdef struct io_uring_sqe:
        uint8_t flags
        int32_t rw_flags
        uint64_t user_data

    cdef struct io_uring_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags

    cdef struct io_uring:
        pass

    cdef struct io_uring_probe:
        pass

    bint uring_has_news "blkd_uring_has_news"(const io_uring *ring)
    int uring_fd "blkd_uring_fd"(const io_uring *ring)
    int enable_uring "blkd_uring_enable"(
        const io_uring *ring, uint64_t operations, uint32_t registrations, uint8_t flags
    )
    int io_uring_queue_init(unsigned entries, io_uring *ring, unsigned flags)
    int io_uring_queue_init_params(unsigned entries, io_uring *ring, io_uring_params *params)
    void io_uring_queue_exit(io_uring *ring)
    int io_uring_get_events(io_uring *ring)
    io_uring_sqe *io_uring_get_sqe(io_uring *ring)
    int io_uring_submit(io_uring *ring)
    unsigned io_uring_sq_ready(const io_uring *ring)
    int io_uring_submit_and_wait(io_uring *ring, unsigned wait_for)
    int io_uring_submit_and_wait_timeout(
        io_uring *ring, io_uring_cqe **first, unsigned wait_for, void *limit, void *signals
    )
    unsigned io_uring_peek_batch_cqe(io_uring *ring, io_uring_cqe **cqes, unsigned count)
    unsigned io_uring_cq_ready(const io_uring *ring)
    void io_uring_cq_advance(io_uring *ring, unsigned count)
    int io_uring_register_eventfd(io_uring *ring, int fd)
    int io_uring_unregister_eventfd(io_uring *ring)
    int io_uring_register_buffers(io_uring *ring, const iovec *buffers, unsigned count)
    int io_uring_unregister_buffers(io_uring *ring)
    io_uring_probe *io_uring_get_probe_ring(io_uring *ring)
    void io_uring_free_probe(io_uring_probe *probe)
    int io_uring_opcode_supported(io_uring_probe *probe, int opcode)

    void io_uring_prep_read(io_uring_sqe *sqe, int fd, void *buffer, unsigned n, uint64_t offset)
    void io_uring_prep_write(
        io_uring_sqe *sqe, int fd, const void *buffer, unsigned n, uint64_t offset
    )
    void io_uring_prep_read_fixed(
        io_uring_sqe *sqe, int fd, void *buffer, unsigned n, uint64_t offset, int chunk
    )
    void io_uring_prep_write_fixed(
        io_uring_sqe *sqe, int fd, const void *buffer, unsigned n, uint64_t offset, int chunk
    )
    void io_uring_prep_readv(
        io_uring_sqe *sqe, int fd, const iovec *iov, unsigned count, uint64_t offset
    )
    void io_uring_prep_writev(
        io_uring_sqe *sqe, int fd, const iovec *iov, unsigned count, uint64_t offset
    )
    void io_uring_prep_fsync(io_uring_sqe *sqe, int fd, unsigned flags)
    void io_uring_prep_fallocate(io_uring_sqe *sqe, int fd, int mode, off_t offset, off_t n)
    void prep_discard "blkd_prep_discard"(
        io_uring_sqe *sqe, int fd, uint64_t offset, uint64_t n
    )
    void io_uring_prep_timeout(io_uring_sqe *sqe, void *delay, unsigned count, unsigned flags)
    void io_uring_prep_poll_add(io_uring_sqe *sqe, int fd, unsigned events)
    void io_uring_prep_poll_multishot(io_uring_sqe *sqe, int fd, unsigned events)
    void io_uring_prep_multishot_accept(
        io_uring_sqe *sqe, int fd, void *address, void *length, int flags
    )
    void prep_connect "blkd_prep_connect"(
        io_uring_sqe *sqe, int fd, const void *address, uint32_t length
    )
    void io_uring_prep_close(io_uring_sqe *sqe, int fd)
    void io_uring_prep_recv(io_uring_sqe *sqe, int fd, void *buffer, size_t n, int flags)
    void io_uring_prep_send(io_uring_sqe *sqe, int fd, const void *buffer, size_t n, int flags)
    void io_uring_prep_recvmsg(io_uring_sqe *sqe, int fd, void *message, unsigned flags)
    void io_uring_prep_sendmsg(io_uring_sqe *sqe, int fd, const void *message, unsigned flags)
    void io_uring_prep_cancel64(io_uring_sqe *sqe, uint64_t user_data, int flags)
    void io_uring_prep_msg_ring(
        io_uring_sqe *sqe, int fd, unsigned n, uint64_t data, unsigned flags
    )


cdef inline uint64_t operation(int opcode) noexcept nogil:
    """The bit of an operation, of which a set is made."""
    return <uint64_t>1 << opcode
