"""The heartbeat file is fresh while every process of a worker runs and consumes, and at no other time."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.settings import settings
from worker.broker import waiting
from worker.pulse import Heartbeat, Pulse


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("worker.pulse.time.monotonic", clock)
    return clock


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("PAYMENTS_HEARTBEAT_FILE", str(tmp_path / "heartbeat"))
    settings.cache_clear()
    yield tmp_path / "heartbeat"
    settings.cache_clear()


def is_touched(heartbeat: Heartbeat, file: Path) -> bool:
    if file.exists():
        os.utime(file, (0, 0))
    heartbeat.maintain()
    return file.exists() and file.stat().st_mtime > 0


def test_there_is_no_heartbeat_before_all_have_consumed(clock: Clock, file: Path) -> None:
    first, second = Pulse(), Pulse()
    heartbeat = Heartbeat([first, second])
    for pulse in (first, second):
        pulse.note_alive()
    first.note_consuming()
    assert not is_touched(heartbeat, file)
    second.note_consuming()
    assert is_touched(heartbeat, file)


def test_a_long_batch_does_not_stop_the_heartbeat(clock: Clock, file: Path) -> None:
    pulse = Pulse()
    heartbeat = Heartbeat([pulse])
    pulse.note_consuming()
    for _ in range(3):
        clock.now += 5
        pulse.note_alive()
        assert is_touched(heartbeat, file)
    clock.now += 6
    pulse.note_alive()
    assert not is_touched(heartbeat, file), "its loop hangs"


def test_one_frozen_process_stops_the_heartbeat(clock: Clock, file: Path) -> None:
    runs, frozen = Pulse(), Pulse()
    heartbeat = Heartbeat([runs, frozen])
    for pulse in (runs, frozen):
        pulse.note_alive()
        pulse.note_consuming()
    assert is_touched(heartbeat, file)
    clock.now += 6
    runs.note_alive()
    runs.note_consuming()
    assert not is_touched(heartbeat, file)
    frozen.note_alive()
    assert is_touched(heartbeat, file)


def test_a_replaced_process_starts_without_a_pulse(clock: Clock) -> None:
    pulse = Pulse()
    pulse.note_alive()
    pulse.note_consuming()
    assert pulse.is_consuming()
    pulse.clear()
    assert not pulse.is_consuming()


def test_what_an_earlier_worker_left_is_removed(file: Path) -> None:
    waited = waiting.file()
    assert waited
    for left in (file, waited):
        left.touch()
    Heartbeat([]).remove()
    assert not file.exists()
    assert not waited.exists()
