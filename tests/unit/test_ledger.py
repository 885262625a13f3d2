# SPDX-License-Identifier: Apache-2.0
"""The ledger of the crash drill: it must accept what a crash may leave, and nothing else."""

import pytest

from drills.ledger import ZEROES, Ledger, content


@pytest.fixture
def ledger():
    return Ledger(4)


def test_a_write_that_nothing_flushed_may_be_there_or_not(ledger):
    generation, data = ledger.write([1])
    ledger.wrote([1], generation)
    assert ledger.allows(1, ZEROES)
    assert ledger.allows(1, data)
    assert ledger.lost(1, ZEROES)
    assert not ledger.lost(1, data)


def test_what_was_answered_before_a_flush_must_be_there(ledger):
    generation, data = ledger.write([1])
    ledger.wrote([1], generation)
    ledger.flushed(ledger.flush())
    assert not ledger.allows(1, ZEROES)
    assert ledger.allows(1, data)


def test_a_flush_covers_nothing_that_was_answered_after_it_began(ledger):
    generation, _ = ledger.write([1])
    covered = ledger.flush()
    ledger.wrote([1], generation)
    ledger.flushed(covered)
    assert ledger.allows(1, ZEROES)


def test_a_write_in_flight_may_be_on_the_disk(ledger):
    _, data = ledger.write([0, 1])
    assert ledger.allows(1, data[4096:])
    assert not ledger.lost(1, ZEROES)


def test_what_never_was_written_is_not_allowed(ledger):
    ledger.write([1])
    assert not ledger.allows(1, content(1, 7))
    assert not ledger.allows(1, content(2, 1))
    assert not ledger.allows(1, content(1, 1)[:2048] + bytes(2048))


def test_zeroes_written_are_a_generation_like_others(ledger):
    for zeroes in (False, True):
        generation, data = ledger.write([1], zeroes=zeroes)
        ledger.wrote([1], generation)
        ledger.flushed(ledger.flush())
    assert data == ZEROES
    assert ledger.allows(1, ZEROES)
    assert not ledger.allows(1, content(1, 1))


def test_write_through_makes_every_answer_durable():
    ledger = Ledger(4, write_through=True)
    generation, data = ledger.write([1])
    assert ledger.allows(1, ZEROES)
    ledger.wrote([1], generation)
    assert not ledger.allows(1, ZEROES)
    assert ledger.allows(1, data)
