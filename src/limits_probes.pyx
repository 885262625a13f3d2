# SPDX-License-Identifier: Apache-2.0
"""Doors for tests into the budgets of a disk; no part of a release."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blk.budgets cimport (
    Cost, DIRECTIONS, Direction, PACES, Paces, Places, lay_out_paces, place_request, take_lines,
)
from blk.limits_page cimport (
    Budget, DIMENSIONS, Line, LIMITS_LAYOUT, LIMITS_PAGE_BYTES, LimitsPage, Share,
    UNITS_A_REQUEST,
)


def layout():
    """Where things lie in a page, in bytes from its start, and its constants."""
    cdef LimitsPage page
    cdef char *start = <char *>&page
    cdef Share *share = &page.shares[0]
    cdef Budget *budget = &page.budgets[0]
    return {
        "layout": <char *>&page.layout - start, "waiting": <char *>&page.waiting - start,
        "budgets": <char *>page.budgets - start, "shares": <char *>page.shares - start,
        "budget": sizeof(Budget), "share": sizeof(Share), "page": sizeof(LimitsPage),
        "credit": <char *>&budget.credit - <char *>budget,
        "granted": <char *>&share.granted - <char *>share,
        "position": <char *>&share.position - <char *>share,
        "used": <char *>&share.used - <char *>share,
        "waits": <char *>&share.waits - <char *>share, "grants": <char *>&page.grants - start,
        "share waiting": <char *>&share.waiting - <char *>share,
        "room": LIMITS_PAGE_BYTES, "version": LIMITS_LAYOUT, "dimensions": DIMENSIONS,
        "units a request": UNITS_A_REQUEST,
    }


cdef class Worker:
    """How one worker keeps the budgets of a page; it takes the time from its caller."""

    cdef Line lines[PACES]
    cdef Paces paces[DIRECTIONS]
    cdef LimitsPage *page
    cdef uint8_t[::1] memory

    def __init__(self, uint8_t[::1] memory):
        self.memory = memory
        self.page = <LimitsPage *>&self.memory[0]
        self.take()

    def take(self):
        """Know the page's rates anew."""
        cdef uint32_t i
        take_lines(self.page, self.lines)
        for i in range(<uint32_t>DIRECTIONS):
            lay_out_paces(&self.paces[i], self.page, self.lines, <Direction><int>i)

    def place(self, direction, uint64_t requests, uint64_t size, uint64_t since, uint64_t now):
        """Take places for a request that weighs so much: its `Request`, and when it may begin."""
        cdef Request request = Request()
        request.cost.requests, request.cost.bytes, request.direction = requests, size, direction
        request.places.taken = 0
        return request, self.look(request, since, now)

    def look(self, Request request not None, uint64_t since, uint64_t now):
        """When a request that has its places may begin, as the rates are now."""
        return place_request(
            &self.paces[<int>request.direction], &request.cost, since, now, &request.places
        )


cdef class Request:
    """One request, and the places that it has."""

    cdef Cost cost
    cdef Places places
    cdef int direction
