# SPDX-License-Identifier: Apache-2.0
"""An engine that ends what it is given on a thread of its own, out of order and late.

It stands for a library that calls back on foreign threads and cannot be made to drop anything.  A
file can stall it: while that is there, nothing that was started ends.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.errno cimport EIO, errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport strdup

from engine.engine cimport (
    ENGINE_CAPSULE, EngineFunctions, IO_DISCARD, IO_FLUSH, IO_READ, IO_WRITE, Io,
)
from engine.foreign cimport complete_foreign
from sys.uring cimport iovec

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t *thread, void *attributes, void *(*run)(void *) noexcept nogil,
                       void *argument)
    int pthread_join(pthread_t thread, void **result)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
    int pthread_cond_signal(pthread_cond_t *condition)

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv(int fd, const iovec *iov, int count, int64_t offset)
    ssize_t pwritev(int fd, const iovec *iov, int count, int64_t offset)

cdef extern from "<fcntl.h>" nogil:
    enum:
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
        FALLOC_FL_ZERO_RANGE
    int fallocate(int fd, int mode, int64_t offset, int64_t n)

cdef extern from "<unistd.h>" nogil:
    int access(const char *path, int mode)
    int fdatasync(int fd)
    int usleep(unsigned microseconds)

cdef enum:
    MOST = 1 << 16              # started at a time: more than all rings of a disk have
    MOST_IOVECS = 1024          # of one call
    STALL_PERIOD = 1000         # microseconds between two looks whether it is stalled


cdef struct Late:
    EngineFunctions functions
    int fd
    uint64_t chance             # of what is random
    uint32_t delay              # microseconds that an Io takes at the most
    char *stall                 # a file
    pthread_t thread
    pthread_mutex_t mutex       # what follows is under it
    pthread_cond_t wanted
    Io *started[MOST]
    uint32_t count
    uint64_t ended
    bint quit


cdef uint64_t draw(Late *late) noexcept nogil:
    """A random number (xorshift64)."""
    late.chance ^= late.chance << 13
    late.chance ^= late.chance >> 7
    late.chance ^= late.chance << 17
    return late.chance


cdef int32_t transfer(Late *late, Io *io) noexcept nogil:
    """Read or write all of an Io: 0 or -errno."""
    cdef uint32_t at = 0, count
    cdef int64_t offset = <int64_t>io.offset
    cdef ssize_t n, whole
    cdef uint32_t i
    while at < io.iov_count:
        count, whole = min(io.iov_count - at, <uint32_t>MOST_IOVECS), 0
        for i in range(count):
            whole += <ssize_t>io.iov[at + i].iov_len
        if io.kind == IO_READ:
            n = preadv(late.fd, io.iov + at, <int>count, offset)
        else:
            n = pwritev(late.fd, io.iov + at, <int>count, offset)
        if n != whole:
            return -errno if n < 0 else -EIO
        at += count
        offset += n
    return 0


cdef int mode_of(const Io *io) noexcept nogil:
    """How a range is to be discarded or zeroed."""
    if io.kind == IO_DISCARD or io.may_unmap:
        return FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    return FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE


cdef int32_t done(Late *late, Io *io) noexcept nogil:
    """Do what an Io asks for: 0 or -errno."""
    cdef int32_t result = 0
    if io.kind == IO_READ or io.kind == IO_WRITE:
        result = transfer(late, io)
    elif io.kind != IO_FLUSH and fallocate(
        late.fd, mode_of(io), <int64_t>io.offset, <int64_t>io.length
    ) < 0:
        result = -errno
    if result == 0 and io.durable and fdatasync(late.fd) < 0:
        result = -errno
    return result


cdef Io *next_io(Late *late) noexcept nogil:
    """Wait for something to be started: any of it, whichever came first; NULL to quit."""
    cdef Io *io = NULL
    cdef uint32_t at
    pthread_mutex_lock(&late.mutex)
    while late.count == 0 and not late.quit:
        pthread_cond_wait(&late.wanted, &late.mutex)
    if late.count:
        at = <uint32_t>(draw(late) % late.count)
        io = late.started[at]
        late.count -= 1
        late.started[at] = late.started[late.count]
    pthread_mutex_unlock(&late.mutex)
    return io


cdef void *run(void *argument) noexcept nogil:
    """The engine's thread."""
    cdef Late *late = <Late *>argument
    cdef int32_t result
    cdef Io *io
    while True:
        io = next_io(late)
        if io == NULL:
            return NULL
        if late.delay:
            usleep(<unsigned>(draw(late) % late.delay))
        while access(late.stall, 0) == 0:
            usleep(STALL_PERIOD)
        result = done(late, io)
        pthread_mutex_lock(&late.mutex)
        late.ended += 1         # before anybody can have seen the Io end
        pthread_mutex_unlock(&late.mutex)
        complete_foreign(io, result)


cdef void start(void *image, Io *io) noexcept nogil:
    cdef Late *late = <Late *>image
    pthread_mutex_lock(&late.mutex)
    late.started[late.count] = io
    late.count += 1
    pthread_cond_signal(&late.wanted)
    pthread_mutex_unlock(&late.mutex)


cdef class LateEngine:
    """The engine of the image that is open as `fd`, borrowed; `functions` is what blkd asks for.

    It takes up to `delay` microseconds for one Io after the other, and stalls while there is a file
    at `stall`.
    """

    cdef Late *late
    cdef readonly object functions

    def __init__(self, int fd, bytes stall, uint32_t delay, uint64_t seed):
        self.late = <Late *>calloc(1, sizeof(Late))
        if self.late == NULL:
            raise MemoryError
        self.late.fd, self.late.chance, self.late.delay = fd, seed | 1, delay
        self.late.stall = strdup(stall)
        self.late.functions.io_size = sizeof(Io)
        self.late.functions.image = self.late
        self.late.functions.start = start
        self.functions = PyCapsule_New(&self.late.functions, ENGINE_CAPSULE, NULL)
        if pthread_create(&self.late.thread, NULL, run, self.late):
            raise OSError(errno, "no thread")

    @property
    def ended(self) -> int:
        """How many Ios have ended."""
        return self.late.ended

    def close(self) -> None:
        """End the thread; nothing is started.  What blkd has of `functions` is not used any more."""
        if self.late.quit:
            return
        with nogil:
            pthread_mutex_lock(&self.late.mutex)
            self.late.quit = True
            pthread_cond_signal(&self.late.wanted)
            pthread_mutex_unlock(&self.late.mutex)
            pthread_join(self.late.thread, NULL)
