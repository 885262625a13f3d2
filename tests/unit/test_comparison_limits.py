# SPDX-License-Identifier: Apache-2.0
import pytest

from compare.cases import KIB
from compare.limits import Carried, Case, Load, shown

SIXTEEN = Load(16)
LARGE = Case(1000, Load(16, 64 * KIB), iops_size=16 * KIB)


@pytest.mark.parametrize(
    ("case", "iops", "p99", "missed"),
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
def test_a_disk_is_to_be_exact_and_prompt(case, iops, p99, missed):
    assert case.missed(Carried(iops, p99)) is missed


def test_a_row_says_how_far_off_a_disk_is():
    assert LARGE.name == "1000 IOPS, iops-size 16K; 64 KiB, QD16"
    assert shown(LARGE, Carried(250.5, 0.0651)) == "250.5 (+0.20%), 65.1 ms"
