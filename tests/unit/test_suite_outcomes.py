# SPDX-License-Identifier: Apache-2.0
from suites.outcomes import COMPLETE, NOT_REACHED, SILENT, Outcome, outcomes

CONNECTED = "Control socket connected to 10.0.0.1:1234.\n"


def test_a_test_passes_when_both_sides_say_so():
    said = f"{CONNECTED}0 - SOCK_STREAM bind only...ok\n1 - poll() + lowat...ok\n{COMPLETE}\n"
    seen = outcomes(said, said)
    assert seen == {0: Outcome("SOCK_STREAM bind only", "ok", "ok"), 1: seen[1]}
    assert seen[1].name == "poll() + lowat"
    assert all(each.passed for each in seen.values())


def test_what_one_side_finds_wrong_fails_the_test():
    server = "0 - client close...ok\n1 - server close...unexpected EOF on control socket\n"
    client = "0 - client close...ok\n1 - server close...write: Success\nsecond line\n"
    seen = outcomes(server, client)
    assert [each.passed for each in seen.values()] == [True, False]
    assert seen[1].server == "unexpected EOF on control socket"
    assert seen[1].client == "write: Success\nsecond line"


def test_a_side_that_is_killed_in_a_test_has_not_passed_it():
    seen = outcomes("0 - client close...ok\n1 - server close...", "0 - client close...ok\n")
    assert (seen[1].server, seen[1].client) == (SILENT, NOT_REACHED)
    assert not seen[1].passed


def test_a_test_that_either_side_skips_is_skipped():
    seen = outcomes("0 - client close...skipped\n", "0 - client close...skipped\n")
    assert seen[0].skipped
    assert not seen[0].passed


def test_the_last_test_is_not_taken_to_say_that_the_other_side_is_waited_for():
    said = "0 - client close...ok\nAll tests have been executed. Waiting other peer..."
    assert outcomes(said, said)[0].passed
