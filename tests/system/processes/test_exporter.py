"""A worker in a container serves its metrics itself, by a process beside it that may die at any time."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from local.stack.ports import free_port
from tests.kit.http import Api, get
from tests.kit.processes import assert_all_ended, family, run_python, start_python
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system


class Worker(NamedTuple):
    process: "subprocess.Popen[bytes]"
    port: int

    def metrics(self) -> str:
        """Empty while nobody answers."""
        answer = get(f"http://127.0.0.1:{self.port}/metrics", seconds=5)
        return answer.body.decode() if answer else ""

    def number(self, name: str) -> float:
        found = [line for line in self.metrics().splitlines() if line.startswith(f"{name} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def exporter(self) -> int | None:
        for pid in family(self.process.pid):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[1:4] == [b"-m", b"worker", b"metrics"]:
                return pid
        return None


def start(service: Service, tmp_path: Path, *arguments: str) -> Worker:
    port = free_port()
    process = start_python(
        *("-m", "worker", *arguments),
        output=tmp_path / f"worker.{port}.log",
        DATABASE_URL=service.database_url,
        BROKER_URL=service.broker_url,
        PAYMENTS_METRICS_PORT=str(port),
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "not" / "there yet"),
        PAYMENTS_WORKERS="1",
    )
    return Worker(process, port)


@pytest.fixture
def worker(service: Service, tmp_path: Path) -> Iterator[Worker]:
    started = start(service, tmp_path)
    yield started
    if started.process.poll() is None:
        before = family(started.process.pid)
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(30)
        assert_all_ended(before, 30)


def test_metrics_survive_a_killed_exporter(service: Service, worker: Worker) -> None:
    api, completed = Api(service.url), 'payments_settled_total{status="COMPLETED"}'
    user_id = api.add_user()

    def settles() -> bool:  # the service's own worker takes its share
        api.deposit(user_id)
        return worker.number(completed) > 0

    wait_until(settles, "the worker's count", 60)
    assert worker.number("payments_batch_size_count") > 0
    settled, first = worker.number(completed), worker.exporter()
    assert first
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: worker.exporter() not in (None, first) and worker.metrics(), "another exporter", 60)
    assert worker.number(completed) >= settled


def test_the_exporter_dies_with_a_worker_that_is_killed(worker: Worker) -> None:
    wait_until(worker.metrics, "the exporter", 90)
    members = family(worker.process.pid)
    worker.process.kill()
    worker.process.wait()
    assert_all_ended(members, 30)


def test_notify_serves_its_metrics_too(service: Service, tmp_path: Path) -> None:
    notify = start(service, tmp_path, "notify")
    try:
        wait_until(lambda: "payments_webhook_deliveries_total" in notify.metrics(), "the exporter", 90)
    finally:
        members = family(notify.process.pid)
        notify.process.kill()
        notify.process.wait()
    assert_all_ended(members, 30)


def test_a_port_without_a_folder_is_refused() -> None:
    done = run_python("-m", "worker", PAYMENTS_METRICS_PORT="9100")
    assert (done.returncode, done.stdout) == (1, "")
    assert "PROMETHEUS_MULTIPROC_DIR" in done.stderr
