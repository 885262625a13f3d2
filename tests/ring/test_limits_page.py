# SPDX-License-Identifier: Apache-2.0
"""The page of limits has one layout, in the data path and in the daemon."""

from blkd.limits_probes import layout

from blkd.statistics import limits_page
from blkd.statistics.limits_page import PAGE_BYTES, UNITS_A_REQUEST, Dimension


def test_layout_is_the_one_that_the_daemon_reads():
    found = layout()
    assert found == {
        "layout": 0,
        "waiting": 4,
        "budgets": 64,
        "shares": limits_page._SHARES,
        "budget": 128,
        "share": limits_page._SHARE_BYTES,
        "page": 1600,
        "credit": 80,
        "granted": 0,
        "position": limits_page._POSITION,
        "used": limits_page._USED,
        "waits": limits_page._WAITS,
        "grants": limits_page._GRANTS * 8,
        "share waiting": limits_page._WAITING,
        "room": PAGE_BYTES,
        "version": limits_page.LAYOUT,
        "dimensions": len(Dimension),
        "units a request": UNITS_A_REQUEST,
    }
