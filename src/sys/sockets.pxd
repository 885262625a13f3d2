# SPDX-License-Identifier: Apache-2.0
"""The part of the kernel's sockets that blkd's data path uses; none of these calls waits."""

from libc.stdint cimport uint8_t, uint32_t

from sys.uring cimport iovec


cdef extern from "<sys/socket.h>" nogil:
    """
    #include <poll.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <linux/sockios.h>
    #include <sys/ioctl.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/un.h>

    #ifndef SO_PASSRIGHTS
    #define SO_PASSRIGHTS 83    /* Linux 6.16 */
    #endif

    /* What has become of a socket, at once: poll's events. */
    static inline int blkd_socket_state(int fd) {
        struct pollfd one = {fd, POLLRDHUP, 0};
        return poll(&one, 1, 0) < 0 ? 0 : one.revents;
    }

    /* Whether something is left to be received. */
    static inline int blkd_has_unread(int fd) {
        int bytes = 0;
        return ioctl(fd, SIOCINQ, &bytes) == 0 && bytes > 0;
    }

    /* Write the address of a UNIX socket at a path of at most 107 bytes: bytes of the address. */
    static inline uint32_t blkd_fill_unix(
        struct sockaddr_storage *out, const uint8_t *path, uint32_t length
    ) {
        struct sockaddr_un *address = (struct sockaddr_un *)out;
        address->sun_family = AF_UNIX;
        memcpy(address->sun_path, path, length);
        address->sun_path[length] = 0;
        return offsetof(struct sockaddr_un, sun_path) + length + 1;
    }
    """
    ctypedef uint32_t socklen_t
    cdef struct sockaddr:
        pass
    cdef struct sockaddr_storage:
        pass
    cdef struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    enum:
        AF_UNIX
        SOCK_STREAM
        SOCK_SEQPACKET
        SOCK_CLOEXEC
        SOCK_NONBLOCK
        SOL_SOCKET
        SO_OOBINLINE
        SO_PASSRIGHTS
        SO_SNDBUF
        IPPROTO_TCP
        TCP_NODELAY
        SHUT_RD
        SHUT_WR
        MSG_CTRUNC
        MSG_NOSIGNAL
        MSG_PEEK
        MSG_TRUNC
        POLLHUP
        POLLERR
        POLLRDHUP
    int socket(int domain, int type, int protocol)
    int socketpair(int domain, int type, int protocol, int *fds)
    int shutdown(int fd, int how)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    uint32_t fill_unix "blkd_fill_unix"(
        sockaddr_storage *out, const uint8_t *path, uint32_t length
    )
    bint has_unread "blkd_has_unread"(int fd)
    int socket_state "blkd_socket_state"(int fd)
