# SPDX-License-Identifier: Apache-2.0
from errno import EIO, ENOSPC

import pytest

from blkd.errors import ImageError
from blkd.image.engine import Fault
from blkd.image.faulty import KINDS, LAST_BYTE, MOST_STRUCK, split

MS = 1_000_000
ALWAYS = MOST_STRUCK, EIO


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("fail@write/100", Fault("fail", ("write",), 100, 0, LAST_BYTE, 0, *ALWAYS)),
        (
            "delay=20ms@read|flush",
            Fault("delay", ("read", "flush"), 1, 0, LAST_BYTE, 20 * MS, *ALWAYS),
        ),
        ("short@any+4K-1M", Fault("short", KINDS, 1, 4096, 1 << 20, 0, *ALWAYS)),
        ("delay=3us@zeroes/2+0-512", Fault("delay", ("zeroes",), 2, 0, 512, 3000, *ALWAYS)),
        ("fail=ENOSPC@write*3", Fault("fail", ("write",), 1, 0, LAST_BYTE, 0, 3, ENOSPC)),
    ],
)
def test_a_rule_says_what_goes_wrong_and_when(rule, expected):
    assert split(f"faulty:{rule}:disk.img") == ((expected,), "disk.img")


def test_several_rules_stand_in_their_order_before_any_image():
    faults, inner = split("faulty:fail@read,short@write:null:1G")
    assert [fault.action for fault in faults] == ["fail", "short"]
    assert inner == "null:1G"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("faulty:fail@read", id="no-image"),
        pytest.param("faulty:fail@read:", id="empty-image"),
        pytest.param("faulty:fail@read:faulty:fail@read:a", id="twice"),
        pytest.param("faulty::a", id="no-rule"),
        pytest.param("faulty:break@read:a", id="unknown-action"),
        pytest.param("faulty:fail@trim:a", id="unknown-kind"),
        pytest.param("faulty:fail@read/0:a", id="never"),
        pytest.param("faulty:fail@read/99999999999:a", id="hardly-ever"),
        pytest.param("faulty:fail@read+8K-4K:a", id="backwards"),
        pytest.param("faulty:fail@read*0:a", id="not-once"),
        pytest.param("faulty:fail=ENOTHING@read:a", id="unknown-error"),
        pytest.param("faulty:fail@read+x-y:a", id="no-size"),
        pytest.param("faulty:delay@read:a", id="no-delay"),
        pytest.param("faulty:delay=5000s@read:a", id="too-long"),
        pytest.param("faulty:" + ",".join(["fail@read"] * 9) + ":a", id="too-many"),
    ],
)
def test_what_is_no_rule_is_refused_by_name(name):
    with pytest.raises(ImageError, match="faulty:"):
        split(name)
