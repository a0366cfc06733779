"""The settling processes and their parent: what ends is started again, what hangs is ended, and nothing outlives the parent."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from tests.kit.processes import assert_all_ended, family, start_python
from tests.kit.service import Service
from tests.kit.waiting import wait_until
from tests.system.processes.test_worker_lines import events

pytestmark = pytest.mark.system

# A worker with a fault: tasks that take long, a guard that is impatient, a consumer that takes nothing, a child that fails.
PLANTED = """
import sys, time
from kombu.transport.virtual import QoS
import worker.guard, worker.tasks, worker.sweep
from shared.payments.settle import SliceResult
from worker.__main__ import main

def a_long_task(lanes):
    print("a long task", flush=True)
    time.sleep({seconds})
    return SliceResult(lanes)

def fail():
    sys.exit(7)

worker.guard.STOP_TIMEOUT_SECONDS = {patience}
worker.guard.MAX_TASK_SECONDS = {task_limit}
worker.tasks.work_lanes = a_long_task
if {deaf}:
    QoS.can_consume = lambda _: False
if {fails}:
    worker.sweep.start = fail
sys.exit(main([]))
"""
FAULTS = {"seconds": 0, "patience": 20, "task_limit": 60, "deaf": False, "fails": False}


@pytest.fixture
def start_planted(service: Service, tmp_path: Path) -> Iterator[Callable[..., "Planted"]]:
    started: list[Planted] = []

    def start(**faults: Any) -> Planted:
        started.append(Planted(service, tmp_path, {**FAULTS, **faults}))
        return started[-1]

    yield start
    for one in started:
        members = family(one.process.pid)
        one.process.kill()
        one.process.wait()
        assert_all_ended(members, seconds=5)


class Planted:
    """A worker whose queue is in another database of the broker: the service's own worker is not rung."""

    def __init__(self, service: Service, folder: Path, faults: dict[str, Any]) -> None:
        self.output, self.heartbeat = folder / "planted.log", folder / "planted.heartbeat"
        self.broker = service.broker_url.removesuffix("/0") + "/1"
        with Redis.from_url(self.broker) as broker:
            broker.flushdb()
        self.process = start_python(
            *("-c", PLANTED.format(**faults)),
            output=self.output,
            DATABASE_URL=service.database_url,
            BROKER_URL=self.broker,
            PAYMENTS_WORKERS="1",
            PAYMENTS_DEAF_SECONDS="2",
            PAYMENTS_HEARTBEAT_FILE=str(self.heartbeat),
        )

    def ring(self) -> None:
        with Celery("tests", broker=self.broker, set_as_current=False) as control:
            control.send_task("settle", [[0]], queue="settle", ignore_result=True)

    def begin_task(self) -> None:
        self.ring()
        self.await_said("a long task")

    def children(self) -> list[int]:
        return sorted(family(self.process.pid).keys() - {self.process.pid})

    def await_child(self, *but: int) -> int:
        """The pid of its settling process, another one than those."""
        found = wait_until(lambda: [pid for pid in self.children() if pid not in but], "another child", 30)
        return found[0]

    def await_said(self, part: str, times: int = 1) -> None:
        wait_until(lambda: self.said().count(part) >= times, part, 60)

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def lines(self, event: str) -> list[dict[str, Any]]:
        fields = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        return [line for line in fields if line["event"] == event]


def test_a_task_under_way_is_finished_by_a_worker_that_stops(start_planted: Callable[..., Planted]) -> None:
    planted = start_planted(seconds=2)
    with Celery("test", broker=planted.broker, set_as_current=False) as app, events(app) as seen:
        planted.begin_task()
        began = time.monotonic()
        planted.process.terminate()
        assert planted.process.wait(20) == 0, planted.said()
        assert time.monotonic() - began > 1, "it was not waited for"
        wait_until(lambda: "task-succeeded" in seen, "Flower is told of the last task", 10)
    assert not planted.lines("settling process ended"), "nothing to complain about"


def test_a_warm_stop_that_takes_too_long_is_killed(start_planted: Callable[..., Planted]) -> None:
    planted = start_planted(seconds=50, patience=2)
    planted.begin_task()
    all_of_it = family(planted.process.pid)
    planted.process.terminate()
    assert planted.process.wait(40) == 1
    said = planted.said()
    assert '"worker terminates itself"' in said
    assert '"reason": "the warm stop takes too long"' in said
    assert "in a_long_task" in said, "the stacks of its threads"
    assert_all_ended(all_of_it, seconds=5)


def test_a_frozen_process_does_not_hold_up_the_stop(start_planted: Callable[..., Planted]) -> None:
    planted = start_planted(seconds=50, patience=2)
    planted.begin_task()
    all_of_it = family(planted.process.pid)
    os.kill(planted.await_child(), signal.SIGSTOP)
    planted.process.terminate()
    assert planted.process.wait(40) == 1
    assert_all_ended(all_of_it, seconds=5)


def test_a_task_that_hangs_is_ended_with_its_stacks(start_planted: Callable[..., Planted]) -> None:
    planted = start_planted(seconds=50, task_limit=3)
    planted.begin_task()
    hung = planted.await_child()
    planted.await_child(hung)
    said = planted.said()
    assert '"reason": "a task takes too long"' in said
    assert "in a_long_task" in said, "the stacks of its threads"
    assert planted.lines("settling process ended")[0]["how"] == "exit code 1"


def test_a_process_that_is_killed_is_replaced_within_two_seconds(start_planted: Callable[..., Planted]) -> None:
    planted = start_planted()
    planted.await_said("ready.")
    killed = planted.await_child()
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    planted.await_said("ready.", times=2)
    assert time.monotonic() - began < 2
    (line,) = planted.lines("settling process ended")
    assert (line["pid"], line["how"], line["restart_in_seconds"]) == (killed, "killed by SIGKILL", 0.5)
    planted.begin_task()  # the new one takes rings
    planted.process.terminate()
    assert planted.process.wait(20) == 0, "a child that was replaced is no failure of the stop"


def test_a_crashing_process_is_restarted_with_a_backoff(
    start_planted: Callable[..., Planted],
) -> None:
    planted = start_planted(fails=True)
    planted.await_said("settling process ended", times=4)
    ends = planted.lines("settling process ended")[:4]
    assert [line["restart_in_seconds"] for line in ends] == [0.5, 1.0, 2.0, 4.0]
    first, *_, last = [datetime.fromisoformat(line["timestamp"]) for line in ends]
    assert (last - first).total_seconds() > 3.5, "it did wait"
    assert not planted.heartbeat.exists()


def test_a_process_that_is_frozen_is_replaced(start_planted: Callable[..., Planted]) -> None:
    planted = start_planted()
    wait_until(planted.heartbeat.exists, "it consumes", 60)
    os.kill(frozen := planted.await_child(), signal.SIGSTOP)
    planted.await_said("frozen settling process killed")
    planted.await_child(frozen)
    planted.begin_task()


def test_processes_die_with_a_parent_that_is_killed(start_planted: Callable[..., Planted]) -> None:
    planted = start_planted(seconds=50)
    planted.begin_task()
    all_of_it = family(planted.process.pid)
    assert len(all_of_it) == 2
    planted.process.kill()
    planted.process.wait()
    assert_all_ended(all_of_it, seconds=2)


def test_a_process_that_takes_no_messages_is_replaced(start_planted: Callable[..., Planted]) -> None:
    planted = start_planted(deaf=True)
    planted.await_said("ready.")
    deaf = planted.await_child()
    planted.ring()
    planted.await_said("deaf worker terminated")
    planted.await_child(deaf)
