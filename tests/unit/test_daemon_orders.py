# SPDX-License-Identifier: Apache-2.0
"""What supervisor and launcher say to each other."""

import msgspec
import pytest

from blkd.daemon import orders
from blkd.errors import LaunchError

LAUNCH = orders.Launch(
    name="web",
    device="blk",
    settings={"image": "/images/web.img"},
    run="/run/blkd",
    places=orders.Places(directories=("/images",)),
    sandbox=orders.Sandbox(user=1000, group=1000),
)
TAKE = orders.Take(name="web", control="/run/blkd/exports/web/control.sock")


def counting(order):
    """The order with a statistics area."""
    return msgspec.structs.replace(order, statistics=True)


@pytest.mark.parametrize(
    ("order", "fds"),
    [
        pytest.param(LAUNCH, 4, id="launch"),
        pytest.param(counting(LAUNCH), 6, id="launch-with-statistics"),
        pytest.param(TAKE, 2, id="take"),
        pytest.param(counting(TAKE), 4, id="take-with-statistics"),
    ],
)
def test_order_survives_its_way(order, fds):
    assert orders.decode_order(orders.encode(order), range(fds)) == order


@pytest.mark.parametrize(
    "report",
    [orders.Started(7), orders.Refused("no more processes"), orders.Ended(7, 9)],
    ids=lambda report: type(report).__name__.lower(),
)
def test_report_survives_its_way(report):
    assert orders.decode_report(orders.encode(report)) == report


@pytest.mark.parametrize(
    "outcome",
    [orders.Ready(msgspec.Raw(b"{}")), orders.Failed("ImageError", "is empty", None)],
    ids=lambda outcome: type(outcome).__name__.lower(),
)
def test_outcome_survives_its_way(outcome):
    assert orders.decode_outcome(orders.encode(outcome)) == outcome


@pytest.mark.parametrize(
    ("data", "fds"),
    [
        pytest.param(b"", 4, id="empty"),
        pytest.param(b"\xff\xfe", 4, id="no-json"),
        pytest.param(b'{"type":"launch"}', 4, id="fields-missing"),
        pytest.param(b'{"type":"run","command":"sh"}', 4, id="unknown-order"),
        pytest.param(orders.encode(LAUNCH).replace(b'"blk"', b'"fs"'), 4, id="unknown-device"),
        pytest.param(orders.encode(LAUNCH)[:-1] + b',"extra":1}', 4, id="unknown-field"),
        pytest.param(orders.encode(LAUNCH).replace(b"1000", b"-1"), 4, id="no-user"),
        pytest.param(orders.encode(LAUNCH), 3, id="no-listener"),
        pytest.param(orders.encode(counting(LAUNCH)), 4, id="no-statistics"),
        pytest.param(orders.encode(counting(TAKE)), 3, id="no-eventfd"),
        pytest.param(orders.encode(TAKE), 3, id="a-descriptor-too-many"),
        pytest.param(
            orders.encode(LAUNCH).replace(b'{"image":"/images/web.img"}', b"[" * 50_000),
            4,
            id="nested-deeply",
        ),
    ],
)
def test_what_is_no_order_is_refused(data, fds):
    with pytest.raises(LaunchError):
        orders.decode_order(data, range(fds))


def test_too_long_an_order_is_refused_where_it_is_made():
    order = msgspec.structs.replace(LAUNCH, settings={"image": "x" * orders.MAX_DOCUMENT})
    with pytest.raises(LaunchError, match="too much"):
        orders.encode(order)
