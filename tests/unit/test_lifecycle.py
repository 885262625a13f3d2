# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.daemon.lifecycle import (
    FIRST_DELAY,
    LAST_DELAY,
    LOOP_DEATHS,
    LOOP_PERIOD,
    PROOF_LIMIT,
    Lifecycle,
)

STARTING = Lifecycle(wanted="serving", state="starting")
SERVING = STARTING.ready(100.0)


@pytest.mark.parametrize(
    ("state", "step", "becomes"),
    [
        pytest.param("stopped", Lifecycle.start, "starting", id="start"),
        pytest.param("failed", Lifecycle.start, "starting", id="start-again"),
        pytest.param("restarting", Lifecycle.start, "starting", id="start-without-delay"),
        pytest.param("serving", Lifecycle.start, "serving", id="started-already"),
        pytest.param("paused", Lifecycle.start, "paused", id="paused-is-started"),
        pytest.param("serving", Lifecycle.pause, "paused", id="pause"),
        pytest.param("starting", Lifecycle.pause, "starting", id="nothing-to-pause"),
        pytest.param("paused", Lifecycle.resume, "serving", id="resume"),
        pytest.param("serving", Lifecycle.stop, "stopping", id="stop"),
        pytest.param("paused", Lifecycle.stop, "stopping", id="stop-paused"),
        pytest.param("starting", Lifecycle.stop, "stopping", id="stop-early"),
        pytest.param("restarting", Lifecycle.stop, "stopped", id="stop-while-dead"),
        pytest.param("failed", Lifecycle.stop, "stopped", id="stop-failed"),
        pytest.param("restarting", Lifecycle.restart, "starting", id="delay-over"),
        pytest.param("stopped", Lifecycle.restart, "stopped", id="delay-of-one-stopped"),
        pytest.param("serving", lambda life: life.die(0, "x"), "restarting", id="die"),
        pytest.param("paused", lambda life: life.die(0, "x"), "restarting", id="die-paused"),
        pytest.param("stopping", lambda life: life.ready(0), "stopping", id="ready-too-late"),
        pytest.param("starting", lambda life: life.refuse("x"), "failed", id="refuse"),
    ],
)
def test_a_step_leads_to_its_state(state, step, becomes):
    wanted = "stopped" if state in {"stopped", "stopping"} else "serving"
    assert step(Lifecycle(wanted=wanted, state=state)).state == becomes


def test_what_was_stopped_is_not_started_again():
    assert SERVING.stop().die(101.0, "ended") == Lifecycle()


def test_what_was_started_while_it_stopped_is_started():
    assert SERVING.stop().start().die(101.0, "ended") == STARTING


def test_one_that_dies_at_once_is_started_later_and_later():
    life, delays = SERVING, []
    for _ in range(10):
        life = life.die(100.0, "crash")
        delays.append(life.delay)
        life = life.restart().ready(100.0)
    assert delays[:4] == [FIRST_DELAY, 0.2, 0.4, 0.8]
    assert delays[-1] == LAST_DELAY
    assert life.restarts == 10


@pytest.mark.parametrize(
    ("delay", "served", "becomes"),
    [
        pytest.param(0.4, 3.9, 0.8, id="not-long-enough"),
        pytest.param(0.4, 4.1, FIRST_DELAY, id="ten-times-the-delay"),
        pytest.param(10.0, PROOF_LIMIT, FIRST_DELAY, id="never-more-than-that"),
    ],
)
def test_one_that_served_for_long_is_back_at_once(delay, served, becomes):
    assert replace(SERVING, delay=delay).die(100.0 + served, "killed").delay == becomes


def test_one_that_never_serves_fails_with_the_reason():
    life = STARTING
    for _ in range(LOOP_DEATHS - 1):
        life = life.die(0.0, "no image")
        assert life.state == "restarting"
        life = life.restart()
    life = life.die(0.0, "no image")
    assert (life.state, life.reason, life.wanted) == ("failed", "no image", "serving")


def test_deaths_long_ago_are_no_loop():
    life = STARTING
    for death in range(3 * LOOP_DEATHS):
        life = life.die(death * LOOP_PERIOD / (LOOP_DEATHS - 1.5), "slow").restart()
    assert life.state == "starting"


def test_one_that_serves_now_and_then_never_fails():
    life = STARTING
    for _ in range(3 * LOOP_DEATHS):
        life = life.ready(0.0).die(0.0, "crash").restart()
    assert life.state == "starting"


STEPS = st.one_of(
    *(
        st.just((name,))
        for name in ("start", "stop", "pause", "resume", "restart", "ready", "die", "refuse")
    ),
    st.floats(0, 1e3).map(lambda seconds: ("wait", seconds)),
)


@given(st.lists(STEPS, max_size=60))
def test_whatever_happens_wanted_and_state_agree(steps):
    life, now = Lifecycle(), 0.0
    for name, *rest in steps:
        match name:
            case "wait":
                now += rest[0]
            case "ready":
                life = life.ready(now)
            case "die" if life.has_process:
                life = life.die(now, "death")
            case "refuse" if life.state in {"starting", "stopping"}:
                life = life.refuse("word")
            case "start" | "stop" | "pause" | "resume" | "restart":
                life = getattr(life, name)()
        assert life.wanted == "serving" or life.state in {"stopped", "stopping"}
        assert life.wanted == "stopped" or life.state != "stopped"
        assert (life.reason is not None) == (life.state in {"restarting", "failed"}) or (
            life.state == "starting"
        )
        assert 0 <= life.delay <= LAST_DELAY
        assert len(life.deaths) < LOOP_DEATHS
