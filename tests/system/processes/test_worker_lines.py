"""What a worker writes is JSON, line by line; what a killed one leaves is cleared by the next; a lost database is a line."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.events.receiver import EventReceiver
from redis import Redis

from local.stack.ports import free_port
from tests.kit.http import status
from tests.kit.processes import family, start_python
from tests.kit.servers import running_broker
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

READY_SECONDS = 60
NOBODY_LISTENS = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture
def broker_url(tmp_path: Path) -> Iterator[str]:
    with running_broker(tmp_path) as broker:
        yield broker.url


class Run:
    """A process of `python -m worker` as a container has it, with a temporary folder of its own."""

    def __init__(self, folder: Path, broker_url: str, *arguments: str) -> None:
        self.folder, self.heartbeat = folder, folder / "heartbeat"
        self.output = folder / f"{len(list(folder.glob('*.out')))}.out"
        self.process = start_python(
            *("-m", "worker", *arguments),
            output=self.output,
            DATABASE_URL=NOBODY_LISTENS,
            BROKER_URL=broker_url,
            PAYMENTS_PROCESS="under-test",
            PAYMENTS_HEARTBEAT_FILE=str(self.heartbeat),
            TMPDIR=str(folder),
            PYTHONWARNINGS="always",
        )

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def await_line(self, part: str, seconds: float = READY_SECONDS) -> None:
        wait_until(lambda: part in self.text() or self.process.poll() is not None, part, seconds)
        assert part in self.text(), self.text()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(40)

    def kill(self) -> None:
        for pid in family(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def assert_all_json(run: Run) -> None:
    for line in run.text().splitlines():
        assert line.startswith("{"), f"not JSON: {line}\n{run.text()}"
        fields = json.loads(line)
        assert fields["process"] == "under-test", line
        assert {"event", "level", "timestamp"} <= fields.keys(), line


@pytest.mark.parametrize("arguments", [(), ("notify",)])
def test_worker_logs_are_json_when_the_broker_goes_away(
    tmp_path: Path, broker_url: str, arguments: tuple[str, ...]
) -> None:
    run = Run(tmp_path, broker_url, *arguments)
    try:
        wait_until(run.heartbeat.exists, "all its processes take messages")
        with Redis.from_url(broker_url) as redis:
            redis.config_set("min-replicas-to-write", "5")
            run.await_line("worker refused by broker")
            change_password(redis)
        run.await_line("broker unreachable")
        assert run.stop() == 0
    finally:
        if run.process.poll() is None:
            run.kill()
        sys.stdout.write(run.text())
    run.await_line("Warm shutdown")
    assert_all_json(run)


def test_each_line_of_flower_is_json(tmp_path: Path, broker_url: str) -> None:
    run = Run(tmp_path, broker_url, "flower", "--address=127.0.0.1", f"--port={(port := free_port())}")
    try:
        wait_until(lambda: status(f"http://127.0.0.1:{port}/healthcheck") == 200, "Flower answers", READY_SECONDS)
        with Redis.from_url(broker_url) as redis:
            wait_until(redis.pubsub_numpat, "it listens", READY_SECONDS)
            change_password(redis)
        wait_until(run.text, "a line", READY_SECONDS)
        assert run.stop() == 0
    finally:
        if run.process.poll() is None:
            run.kill()
    assert_all_json(run)


def change_password(redis: Redis) -> None:
    """And end all connections but this one."""
    redis.config_set("requirepass", "another")
    for kind in ("normal", "pubsub"):
        redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


@contextmanager
def events(app: Celery) -> Iterator[dict[str, dict[str, Any]]]:
    """The last event of each type that Celery's monitors, Flower among them, get."""
    seen: dict[str, dict[str, Any]] = {}
    receivers: list[EventReceiver] = []

    def listen() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(
                connection, handlers={"*": lambda event: seen.update({event["type"]: event})}
            )
            receivers.append(receiver)
            receiver.capture(wakeup=False)  # in one go: between two captures nobody listens, and events are lost

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        wait_until(lambda: "worker-heartbeat" in seen, "the worker is heard", READY_SECONDS)
        yield seen
    finally:
        for receiver in receivers:
            receiver.should_stop = True
        thread.join()


def test_a_database_that_is_away_is_a_line_and_no_traceback(tmp_path: Path, broker_url: str) -> None:
    run = Run(tmp_path, broker_url)
    try:
        run.await_line(" ready.")
        with Celery("test", broker=broker_url, set_as_current=False) as sender, events(sender) as seen:
            for number in range(20):
                sender.send_task("settle", args=[[number % 16]], task_id=f"ring-{number}", queue="settle", retry=False)
            wait_until(lambda: "task-failed" in seen, "an event says that a task failed", READY_SECONDS)
        assert seen["task-failed"]["exception"].startswith("NotDone("), seen
        run.await_line("task failed")
        with Redis.from_url(broker_url) as redis:
            wait_until(lambda: redis.llen("settle") == 0, "all rings are taken")
        assert run.stop() == 0
    finally:
        if run.process.poll() is None:
            run.kill()
    assert_all_json(run)
    assert "Traceback" not in run.text()
    assert not [line for line in run.events() if "exception" in line], "a traceback"


def test_what_a_killed_worker_leaves_is_cleared_by_the_next(tmp_path: Path, broker_url: str) -> None:
    first = Run(tmp_path, broker_url)
    first.await_line(" ready.")
    wait_until(first.heartbeat.exists, "it consumes", READY_SECONDS)
    before = {entry.name for entry in tmp_path.iterdir()}
    first.kill()
    assert first.heartbeat.exists(), "it leaves the heartbeat, or this test is of nothing"
    (tmp_path / "heartbeat.waiting").touch()
    with Redis.from_url(broker_url) as redis:
        redis.config_set("min-replicas-to-write", "5")  # so that the next one does not become ready
        second = Run(tmp_path, broker_url)
        try:
            second.await_line("worker refused by broker")
            assert not second.heartbeat.exists(), "an old heartbeat says that the new worker consumes"
            redis.config_set("min-replicas-to-write", "0")
            wait_until(second.heartbeat.exists, "it consumes", READY_SECONDS)
            assert second.stop() == 0
        finally:
            if second.process.poll() is None:
                second.kill()
    left = {entry.name for entry in tmp_path.iterdir()} - before
    assert left <= {second.output.name, "heartbeat.waiting"}, "temporary files"
