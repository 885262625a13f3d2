# SPDX-License-Identifier: Apache-2.0
"""The states of a vring, and what brings it from one to another, as a table.

docs/design/vring-states.md shows it, and says what each means.  Whether a vring is enabled and
whether its worker is paused stands beside this: both may change in any state.
"""


cdef extern from *:
    """
    enum blkd_vring_state {
        BLKD_UNCHANGED, BLKD_STOPPED, BLKD_RUNNING, BLKD_WAITING, BLKD_BROKEN, BLKD_LOST,
        BLKD_STOPPING,
    };
    enum blkd_vring_event {
        BLKD_START, BLKD_START_BROKEN, BLKD_WAIT, BLKD_BREAK, BLKD_LOSE, BLKD_PLACE, BLKD_STOP,
        BLKD_SETTLE,
    };

    /* What stands nowhere here changes nothing. */
    static const unsigned char blkd_next_state[][BLKD_SETTLE + 1] = {
        [BLKD_STOPPED] = {
            [BLKD_START] = BLKD_RUNNING,
            [BLKD_START_BROKEN] = BLKD_BROKEN,
        },
        [BLKD_RUNNING] = {
            [BLKD_WAIT] = BLKD_WAITING,
            [BLKD_BREAK] = BLKD_BROKEN,
            [BLKD_LOSE] = BLKD_LOST,
            [BLKD_STOP] = BLKD_STOPPING,
        },
        [BLKD_WAITING] = {
            [BLKD_BREAK] = BLKD_BROKEN,
            [BLKD_LOSE] = BLKD_LOST,
            [BLKD_PLACE] = BLKD_RUNNING,
            [BLKD_STOP] = BLKD_STOPPING,
        },
        [BLKD_BROKEN] = {
            [BLKD_STOP] = BLKD_STOPPING,
        },
        [BLKD_LOST] = {
            [BLKD_BREAK] = BLKD_BROKEN,
            [BLKD_PLACE] = BLKD_RUNNING,
            [BLKD_STOP] = BLKD_STOPPING,
        },
        [BLKD_STOPPING] = {
            [BLKD_SETTLE] = BLKD_STOPPED,
        },
    };
    """
    cdef enum VringState "blkd_vring_state":
        UNCHANGED "BLKD_UNCHANGED"
        STOPPED "BLKD_STOPPED"          # not the worker's: nothing of it is touched
        RUNNING "BLKD_RUNNING"          # fetched from, if it is enabled and its worker not paused
        WAITING "BLKD_WAITING"          # not fetched from, until a translation comes
        BROKEN "BLKD_BROKEN"            # not fetched from, until it is stopped and started
        LOST "BLKD_LOST"                # its memory was taken away: not fetched from
        STOPPING "BLKD_STOPPING"        # not fetched from: what is in flight ends
    cdef enum VringEvent "blkd_vring_event":
        START "BLKD_START"              # it starts
        START_BROKEN "BLKD_START_BROKEN"    # ... as another process left it, broken
        WAIT "BLKD_WAIT"                # a translation is missing, of it or of its next chain
        BREAK "BLKD_BREAK"              # what its driver or front end did cannot be served
        LOSE "BLKD_LOSE"                # new memory comes, which has no place for it
        PLACE "BLKD_PLACE"              # new memory comes, or new addresses, or a translation
        STOP "BLKD_STOP"                # it is to stop
        SETTLE "BLKD_SETTLE"            # nothing is in flight, and its kick is not watched
    const unsigned char next_state "blkd_next_state"[][8]


cdef inline VringState state_after(VringState state, VringEvent event) noexcept nogil:
    """The state that an event leads to; the same where it changes nothing."""
    cdef VringState after = <VringState>next_state[<int>state][<int>event]
    return state if after == UNCHANGED else after
