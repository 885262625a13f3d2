# SPDX-License-Identifier: Apache-2.0
import pytest

from compare.cases import KIB
from compare.limits import Case, Load, limited_table, missed
from compare.results import Carried, Limited

SIXTEEN = Load(16)
LARGE = Case(1000, Load(16, 64 * KIB), iops_size=16 * KIB)


def seen(case, iops, p99):
    return Limited(case.name, case.ideal, Carried(iops, p99), Carried(1, 1))


@pytest.mark.parametrize(
    ("case", "iops", "p99", "is_missed"),
    [
        pytest.param(Case(1000, SIXTEEN), 1000.2, 0.017, False, id="as it is to be"),
        pytest.param(Case(1000, SIXTEEN), 1004.9, 0.031, False, id="just so"),
        pytest.param(Case(1000, SIXTEEN), 1005.1, 0.017, True, id="too many"),
        pytest.param(Case(1000, SIXTEEN), 994.9, 0.017, True, id="too few"),
        pytest.param(Case(1000, SIXTEEN), 1000.0, 0.033, True, id="too late"),
        pytest.param(LARGE, 250.0, 0.065, False, id="large requests"),
        pytest.param(LARGE, 1000.0, 0.016, True, id="large ones as small ones"),
    ],
)
def test_a_disk_is_to_be_exact_and_prompt(case, iops, p99, is_missed):
    assert missed(seen(case, iops, p99)) is is_missed


def test_a_row_says_how_far_off_a_disk_is():
    row = limited_table([seen(LARGE, 250.5, 0.0651)]).splitlines()[-1]
    assert row == (
        "| 1000 IOPS, iops-size 16K; 64 KiB, QD16 | 250, 64 ms | 250.5 (+0.20%), 65.1 ms "
        "| 1.0 (-99.60%), 1e+03 ms |"
    )
