"""The worker's probe, run as the kubelet runs it: a worker that waits for its broker is let live, a silent one is not."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGSTOP

import pytest

from tests.deploy.manifests import ROOT, compose, containers, overlay
from tests.kit.servers import Broker, running_broker
from worker.liveness import HEARTBEAT_MAX_AGE_SECONDS

pytestmark = pytest.mark.integration

NOBODY_LISTENS = "redis://127.0.0.1:1/0"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Broker]:
    with running_broker(tmp_path) as broker:
        yield broker


def probe(heartbeat: Path, broker_url: str) -> int:
    """The exit code of the command that the manifest has, with a file of the test's own."""
    worker = next(c for c in containers(overlay("small")) if c.process == "worker" and not c.is_init)
    command = [
        word.replace("/tmp/heartbeat", str(heartbeat)) for word in worker.spec["livenessProbe"]["exec"]["command"]
    ]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PAYMENTS_HEARTBEAT_FILE": str(heartbeat),
        "BROKER_URL": broker_url,
    }
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode


def silent(tmp_path: Path) -> Path:
    heartbeat = tmp_path / "heartbeat"
    heartbeat.touch()
    old = time.time() - HEARTBEAT_MAX_AGE_SECONDS - 5
    os.utime(heartbeat, (old, old))
    return heartbeat


def test_a_worker_with_a_fresh_heartbeat_is_alive(tmp_path: Path) -> None:
    heartbeat = tmp_path / "heartbeat"
    heartbeat.touch()
    assert probe(heartbeat, NOBODY_LISTENS) == 0


def test_a_silent_worker_is_ended_while_the_broker_answers(server: Broker, tmp_path: Path) -> None:
    assert probe(silent(tmp_path), server.url) == 1


def test_a_silent_worker_is_let_live_while_the_broker_is_away(tmp_path: Path) -> None:
    assert probe(silent(tmp_path), NOBODY_LISTENS) == 0


def test_a_silent_worker_is_let_live_while_the_broker_hangs(server: Broker, tmp_path: Path) -> None:
    url, process = server
    process.send_signal(SIGSTOP)
    assert probe(silent(tmp_path), url) == 0


def test_a_worker_that_never_became_ready_is_not_alive(server: Broker, tmp_path: Path) -> None:
    assert probe(tmp_path / "never", server.url) == 1


@pytest.mark.parametrize("was_ready", [True, False])
def test_a_worker_that_its_broker_refuses_is_alive(server: Broker, tmp_path: Path, was_ready: bool) -> None:
    heartbeat = silent(tmp_path) if was_ready else tmp_path / "heartbeat"
    waiting = tmp_path / "heartbeat.waiting"
    waiting.touch()
    assert probe(heartbeat, server.url) == 0
    old = time.time() - HEARTBEAT_MAX_AGE_SECONDS - 5
    os.utime(waiting, (old, old))
    assert probe(heartbeat, server.url) == 1


def test_start_and_compose_and_notify_ask_the_same() -> None:
    asked = set()
    for process in ("worker", "notify"):
        container = next(c for c in containers(overlay("small")) if c.process == process and not c.is_init)
        for kind in ("startupProbe", "livenessProbe"):
            asked.add(container.spec[kind]["exec"]["command"][2])
        asked.add(compose()[process]["healthcheck"]["test"][1].replace("$$", "$"))
    assert len(asked) == 1
