# SPDX-License-Identifier: Apache-2.0
# Part of ring.pyx: what Python passes to a worker, as the data path takes it.

cdef Placement placement(where) noexcept:
    """A ring's place from (desc, driver, device, log), or from None where it is not mapped.

    `log` is (desc, device) as guest addresses, or None where its areas are not logged.
    """
    cdef Placement p
    memset(&p, 0, sizeof(p))
    if where is not None:
        p.desc = <void *><uint64_t>where[0]
        p.driver = <void *><uint64_t>where[1]
        p.device = <void *><uint64_t>where[2]
        if where[3] is not None:
            p.log.on = True
            p.log.desc, p.log.device = where[3]
    return p


FAULT_ACTIONS = {"fail": FAULT_FAIL, "delay": FAULT_DELAY, "short": FAULT_SHORTEN}
KINDS = {
    "read": OP_READ, "write": OP_WRITE, "flush": OP_FLUSH, "discard": OP_DISCARD,
    "zeroes": OP_WRITE_ZEROES,
}


cdef Fault fault_of(rule):
    """One rule of a faulty image."""
    cdef Fault f
    action, operations, every, start, end, delay = rule
    f.action, f.every, f.start, f.end = FAULT_ACTIONS[action], every, start, end
    f.kinds = sum(1 << KINDS[name] for name in operations)
    f.delay.tv_sec, f.delay.tv_nsec = divmod(delay, 1000000000)
    return f


ENGINES = {"uring": ENGINE_URING, "inline": ENGINE_INLINE, "null": ENGINE_NULL}
