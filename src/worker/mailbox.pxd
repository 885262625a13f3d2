# SPDX-License-Identifier: Apache-2.0
"""Commands from the control thread to a worker, answers and misses back: three rings, no locks.

Each index has one writer.  A command is answered exactly once, perhaps much later, under
its ticket; the control thread keeps fewer than MAILBOX_SLOTS tickets open, so neither
ring can overflow.  A `ticket` of 0 marks a report that nobody asked for.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from sys.atomics cimport load_acquire_u32, store_release_u32

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *buffer, size_t count)


cdef enum:
    MAILBOX_SLOTS = 512         # a power of two
    MISS_SLOTS = 256            # likewise
    REPORT_RECOVERED = 1 << 16  # a report's result from here on: requests that a ring begins with


cdef enum CommandKind:
    CMD_SET_MEMORY              # data: Placement[]; answered when the old map is unused
    CMD_REGISTER                # answered once that was tried, or another map has come
    CMD_CONFIGURE               # data: the device's own
    CMD_SET_LOG                 # data: DirtyLog; the old one is unused once answered
    CMD_SET_IOTLB               # data: pointer to an Iotlb, NULL where there is no IOMMU
    CMD_UPDATE_IOTLB            # data: Translation
    CMD_INVALIDATE_IOTLB        # data: Invalidation; answered when nothing touches what is gone
    CMD_LOSE_PATIENCE           # answered with 0 where no vring waits for a chain's translations
    CMD_DENY_IOTLB              # data: Miss
    CMD_START                   # data: VringStart
    CMD_MOVE                    # data: Placement
    CMD_STOP                    # answered with the next avail index, once drained
    CMD_ENABLE                  # value: 0 or 1
    CMD_SET_KICK                # value: descriptor or -1; answered when the old one is idle
    CMD_SET_CALL                # value: descriptor or -1
    CMD_SET_ERROR               # value: descriptor or -1
    CMD_PREPARE                 # makes now what is else made at the first use
    CMD_PAUSE                   # answered once drained
    CMD_RESUME
    CMD_RETRY                   # value: how many chains that were put off are to begin again
    CMD_QUIT                    # leaves at once: what is in flight is abandoned


cdef struct Command:
    CommandKind kind
    uint32_t vring              # the worker's own number of the ring
    uint64_t ticket
    int64_t value
    void *data                  # the control thread keeps it until the answer


cdef struct Answer:
    uint64_t ticket
    int64_t result              # not negative, or -errno; of a report see Worker.answers
    uint32_t vring


cdef struct Miss:
    uint64_t iova               # of a page
    uint32_t access             # that is needed


cdef struct Mailbox:
    Command commands[MAILBOX_SLOTS]     # control thread
    Answer answers[MAILBOX_SLOTS * 2]   # worker; reports share it
    uint32_t posted             # control thread
    uint32_t taken              # worker
    uint32_t staged             # worker: answers written
    uint32_t delivered          # worker: answers shown to the control thread
    uint32_t received           # control thread
    Miss misses[MISS_SLOTS]     # worker
    uint32_t missed             # worker
    uint32_t asked              # control thread: misses taken
    int commands_fd             # eventfd: control thread writes, worker polls
    int answers_fd              # eventfd: worker writes, the event loop reads


cdef inline bint has_command(const Mailbox *box) noexcept nogil:
    """Worker: whether there is a command to take."""
    return load_acquire_u32(&box.posted) != box.taken


cdef inline bint take_command(Mailbox *box, Command *out) noexcept nogil:
    """Worker: the next command, if there is one."""
    if not has_command(box):
        return False
    out[0] = box.commands[box.taken & (MAILBOX_SLOTS - 1)]
    store_release_u32(&box.taken, box.taken + 1)
    return True


cdef inline bint has_report_room(const Mailbox *box) noexcept nogil:
    """Worker: whether a report that is staged now is not dropped."""
    return box.staged - load_acquire_u32(&box.received) < MAILBOX_SLOTS


cdef inline void stage_answer(
    Mailbox *box, uint64_t ticket, uint32_t vring, int64_t result
) noexcept nogil:
    """Worker: write an answer, seen only after `deliver`.  A report is dropped when full."""
    cdef uint32_t used = box.staged - load_acquire_u32(&box.received)
    cdef Answer *slot = &box.answers[box.staged & (MAILBOX_SLOTS * 2 - 1)]
    if ticket == 0 and used >= MAILBOX_SLOTS:
        return
    slot.ticket, slot.vring, slot.result = ticket, vring, result
    box.staged += 1


cdef inline void wake_control(const Mailbox *box) noexcept nogil:
    """Worker: have the control thread look for what was posted."""
    cdef uint64_t one = 1
    write(box.answers_fd, &one, sizeof(one))


cdef inline void deliver(Mailbox *box) noexcept nogil:
    """Worker: show the control thread every staged answer."""
    store_release_u32(&box.delivered, box.staged)
    wake_control(box)


cdef inline bint post_miss(Mailbox *box, uint64_t iova, uint32_t access) noexcept nogil:
    """Worker: have a translation asked for, by whom `wake_control` wakes: whether there is room."""
    cdef Miss *slot = &box.misses[box.missed & (MISS_SLOTS - 1)]
    if box.missed - load_acquire_u32(&box.asked) == MISS_SLOTS:
        return False
    slot.iova, slot.access = iova, access
    store_release_u32(&box.missed, box.missed + 1)
    return True


cdef inline void wake_worker(const Mailbox *box) noexcept nogil:
    """Control thread: have a worker that sleeps take a turn."""
    cdef uint64_t one = 1
    write(box.commands_fd, &one, sizeof(one))


cdef inline void post_command(Mailbox *box, const Command *command) noexcept nogil:
    """Control thread: hand a command over and wake the worker."""
    box.commands[box.posted & (MAILBOX_SLOTS - 1)] = command[0]
    store_release_u32(&box.posted, box.posted + 1)
    wake_worker(box)


cdef inline bint take_answer(Mailbox *box, Answer *out) noexcept nogil:
    """Control thread: the next delivered answer, if there is one."""
    if load_acquire_u32(&box.delivered) == box.received:
        return False
    out[0] = box.answers[box.received & (MAILBOX_SLOTS * 2 - 1)]
    store_release_u32(&box.received, box.received + 1)
    return True


cdef inline bint take_miss(Mailbox *box, Miss *out) noexcept nogil:
    """Control thread: the next translation to be asked for, if there is one.

    A worker that had no room for more is woken: it may have more to ask for.
    """
    cdef bint was_full
    if load_acquire_u32(&box.missed) == box.asked:
        return False
    was_full = load_acquire_u32(&box.missed) - box.asked == MISS_SLOTS
    out[0] = box.misses[box.asked & (MISS_SLOTS - 1)]
    store_release_u32(&box.asked, box.asked + 1)
    if was_full:
        wake_worker(box)
    return True
