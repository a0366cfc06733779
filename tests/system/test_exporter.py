"""A worker in a container serves its metrics itself, by a process beside it that may die at any time."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import urllib3
from api import Api
from running_service import ROOT, Service, assert_all_ended, environment, family, wait_until

pytestmark = pytest.mark.system


class Worker(NamedTuple):
    process: "subprocess.Popen[bytes]"
    port: int

    def metrics(self) -> str:
        """Empty while nobody answers."""
        try:
            return urllib3.request(
                "GET", f"http://127.0.0.1:{self.port}/metrics", retries=False, timeout=5
            ).data.decode()
        except urllib3.exceptions.HTTPError:
            return ""

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


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def start(service: Service, tmp_path: Path, *arguments: str) -> Worker:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", *arguments],
        cwd=ROOT,
        env=environment(
            DATABASE_URL=service.database_url,
            BROKER_URL=service.broker_url,
            PAYMENTS_METRICS_PORT=str(port),
            PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "not" / "there yet"),
            PAYMENTS_WORKERS="1",
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
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
    done = subprocess.run(
        [sys.executable, "-m", "worker"],
        cwd=ROOT,
        env=environment(PAYMENTS_METRICS_PORT="9100"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "PROMETHEUS_MULTIPROC_DIR" in done.stderr
