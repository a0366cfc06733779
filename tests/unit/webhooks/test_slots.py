"""Slots: attempts to receivers that fail or hang take at most half of them."""

import pytest

from shared.webhooks import slots
from shared.webhooks.slots import Slots

pytestmark = pytest.mark.unit

COUNT = 8
HALF = COUNT // 2


def begin(made: Slots, count: int, *, is_failing: bool = False, first: int = 1) -> int:
    """How many of so many webhooks got a slot."""
    return sum(made.begin(webhook, is_failing=is_failing) is not None for webhook in range(first, first + count))


def test_healthy_receivers_may_have_all_slots() -> None:
    made = Slots(COUNT)
    assert begin(made, 2 * COUNT) == COUNT


def test_receivers_that_fail_get_half_and_leave_the_rest() -> None:
    made = Slots(COUNT)
    assert begin(made, COUNT, is_failing=True) == HALF
    assert made.free_for_failing() == 0
    assert begin(made, COUNT) == HALF


def test_a_slot_that_is_free_again_is_given_again() -> None:
    made = Slots(COUNT)
    attempts = [made.begin(webhook, is_failing=True) for webhook in range(HALF)]
    assert made.begin(99, is_failing=True) is None
    made.end(attempts[0])  # type: ignore[arg-type]
    assert made.begin(99, is_failing=True)
    assert not made.wait_until_idle(0)


def test_once_closed_no_attempt_begins() -> None:
    made = Slots(COUNT)
    made.close()
    assert made.begin(1, is_failing=False) is None
    assert made.wait_until_idle(0)


def test_an_attempt_that_takes_long_leaves_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Slots(COUNT)
    begin(made, COUNT)
    assert made.begin(99, is_failing=False) is None
    monkeypatch.setattr(slots, "MAX_SLOT_SECONDS", -1.0)
    assert made.begin(99, is_failing=False)


def test_how_many_go_on_outside_of_the_slots_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MAX_SLOT_SECONDS", -1.0)
    made = Slots(COUNT)
    assert begin(made, 2 * made.limit) == made.limit == COUNT + slots.MAX_ATTEMPTS_OUTSIDE_SLOTS


def test_a_receiver_that_hangs_counts_as_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Slots(COUNT)
    begin(made, HALF - 1)
    assert not made.is_hanging(1)
    monkeypatch.setattr(slots, "HANGING_AFTER_SECONDS", -1.0)
    assert made.is_hanging(1)
    assert not made.is_hanging(99)
    assert made.free_for_failing() == 1
    assert made.begin(1, is_failing=False), "the last one of the half"
    assert made.begin(1, is_failing=False) is None
    assert made.begin(99, is_failing=False), "it is not known to hang"


def test_a_hanging_attempt_outside_slots_delays_failing_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Slots(COUNT)
    begin(made, HALF)
    monkeypatch.setattr(slots, "MAX_SLOT_SECONDS", -1.0)
    monkeypatch.setattr(slots, "HANGING_AFTER_SECONDS", -1.0)
    assert begin(made, COUNT, is_failing=True, first=50) == 0
    assert begin(made, 2 * COUNT, first=50) == 2 * COUNT
