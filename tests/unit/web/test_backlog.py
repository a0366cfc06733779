"""When there may be room again, by how fast the backlog shrinks; how often a long backlog is counted."""

from collections import deque

import pytest

from shared.settings import settings
from web.limits.backlog import REMEMBERED_READINGS, BacklogReader, backlog_max_age_seconds

pytestmark = pytest.mark.unit


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> BacklogReader:
    monkeypatch.setenv("PAYMENTS_BACKLOG_LIMIT", "1000")
    settings.cache_clear()
    yield BacklogReader()
    monkeypatch.undo()
    settings.cache_clear()


@pytest.mark.parametrize(
    ("pending", "seconds"),
    [
        ([], 1),
        ([1500], 1),
        ([900, 1500], 1),  # it has just become full: nobody knows yet
        ([1500, 1400, 1300], 4),  # 301 too many, 100 a second
        ([900, 1500, 1400, 1300], 4),  # what was before it was full tells nothing
        ([2000, 1000], 1),
        ([1500, 1499], 60),
        ([1500, 1500], 1),  # nothing in a second says nothing yet
        ([1500] * 6, 60),
        ([1500, 1600, 1700, 1800, 1900, 2000], 60),
        ([1000, 1400, 1300], 4),  # what was being committed as it became full came late
        ([1900, 900, 1800, 910, 2000], 1),  # it comes and goes: there is room all the time
    ],
)
def test_the_seconds_go_by_what_was_settled_of_late(reader: BacklogReader, pending: list[int], seconds: int) -> None:
    reader._pending = deque([(100.0 + at, count) for at, count in enumerate(pending)], REMEMBERED_READINGS)
    assert reader.retry_seconds() == seconds


@pytest.mark.parametrize(
    ("pending", "counted_seconds", "seconds"),
    [
        (0, 0.001, 0.5),  # a quick count
        (100_000, 0.02, 0.5),
        (1_000_000, 0.2, 2.0),  # a tenth of the time
        (1_900_000, 0.4, 1.0),  # 100,000 rows below the limit
        (1_990_000, 0.4, 0.5),
        (2_000_000, 0.4, 0.5),
        (3_000_000, 0.6, 0.5),
    ],
)
def test_a_slow_count_is_rare_unless_the_limit_is_near(
    monkeypatch: pytest.MonkeyPatch, pending: int, counted_seconds: float, seconds: float
) -> None:
    monkeypatch.setenv("PAYMENTS_BACKLOG_LIMIT", "2000000")
    settings.cache_clear()
    assert backlog_max_age_seconds(pending, counted_seconds) == seconds
    monkeypatch.undo()
    settings.cache_clear()
