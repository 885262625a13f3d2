# SPDX-License-Identifier: Apache-2.0
import re

import pytest

from compare.cases import FULL
from compare.goals import GOALS
from compare.report import CHECKOUT, DOCUMENT, document, name_of, remarks_of
from compare.results import Failure, Footprint, Function, Profile, Run, Sample, load, save
from compare.run import resumed

KEPT = CHECKOUT / "compare" / "results" / "full.json"
MOST_BYTES_OF_A_PICTURE = 100 << 10


def small_run():
    samples = [
        Sample(
            *("tmpfs-randread-4k-qd32", subject, number, 1000, rate, rate * 4096, 1.5),
            *(100, 90, 95, 96, 99, 120, 150, 0.25),
        )
        for subject, rate in (("blkd", 300_000.0), ("qsd-native", 100_000.0))
        for number in (1, 2, 3)
    ]
    return Run(
        *("full", "2026-01-01", 3, 2.0),
        environment={"processor": "a | b"},
        samples=samples,
        footprints=[Footprint("blkd", 1, 1 << 40, 64 << 20, 0.0, 0.0, 3, 20480, 9, 9, 0)],
        failures=[Failure("idle", "qsd-native", n, "not | here") for n in (1, 2)],
        profiles=[Profile("split", "callgrind", 100, 350.5, [Function("virtq.walk", 120.25)])],
    )


def page(run=None, remarks=None):
    return document(run or small_run(), "data.json", remarks or {})


def test_the_kept_page_is_that_of_the_kept_data():
    run = load(KEPT)
    assert DOCUMENT.read_text() == document(run, name_of(KEPT), remarks_of()), (
        "run: .venv/bin/python -m compare.report compare/results/full.json"
    )


def test_the_pictures_of_the_page_are_there_and_small():
    names = re.findall(r"\]\((benchmarks/\w+\.svg)\)", DOCUMENT.read_text())
    assert len(names) == 3
    for name in names:
        picture = (DOCUMENT.parent / name).read_text()
        assert len(picture.encode()) < MOST_BYTES_OF_A_PICTURE
        assert "<dc:date>" not in picture


def test_the_kept_data_tells_no_place_of_the_machine_it_was_made_on():
    assert str(CHECKOUT) not in KEPT.read_text()


def test_remarks_are_on_goals_that_exist():
    assert set(remarks_of()) <= {goal.key for goal in GOALS}


def test_each_goal_has_its_row():
    rows = page().partition("## Goals")[2].partition("## How")[0]
    for goal in GOALS:
        assert goal.title in rows


def test_a_goal_tells_its_figure_its_reach_and_its_verdict():
    assert "| QD32, IOPS | ≥ 2 × | 3.00 × | 3.00–3.00 | QSD native | met |" in page()


def test_a_remark_stands_below_the_goals():
    assert "- **fio in a guest: IOPS" not in page()
    assert "no worse than with QSD** — it is\n" in page(remarks={"guest": "it\n is"})


def test_a_subject_s_figures_are_medians():
    assert "| blkd | 300 k (300 k–300 k) | 0.0900 | 0.0990 | 1.50 |" in page()


def test_an_idle_export_tells_its_memory():
    assert "| blkd | 1 TiB | 64 MiB | 0 | 0 | 3 | 20.0 |" in page()


def test_the_same_failure_is_reported_once():
    assert page().count("not \\| here") == 1


def test_few_rounds_are_called_preliminary():
    assert "**Preliminary**" in page()
    run = small_run()
    run.rounds = 5
    assert "**Preliminary**" not in page(run)


def test_a_page_can_be_made_of_nothing():
    assert "Not measured in this run." in page(Run("full", "2026-01-01", 5, 2.0))


def test_a_run_is_read_as_it_was_saved(tmp_path):
    save(small_run(), tmp_path / "run.json")
    assert load(tmp_path / "run.json") == small_run()


def test_data_of_another_form_is_not_read(tmp_path):
    run = small_run()
    run.version = 99
    save(run, tmp_path / "run.json")
    with pytest.raises(ValueError, match="form 99"):
        load(tmp_path / "run.json")


def test_a_part_that_is_measured_anew_replaces_what_was():
    run = resumed(small_run(), FULL, ["footprint", "profile"])
    assert (run.footprints, run.profiles, run.failures) == ([], [], [])
    assert run.samples == small_run().samples


def test_the_host_s_cases_measured_anew_leave_the_idle_exports():
    run = resumed(small_run(), FULL, ["host"])
    assert run.samples == []
    assert run.footprints == small_run().footprints
