"""Web rings in one database of the broker, the workers listen in another: the queue stays bounded, and metrics tell."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import urllib3
from api import Api, transaction
from redis import Redis
from running_service import ROOT, Service, environment, wait_until
from test_graceful_web import free_port

pytestmark = pytest.mark.system

NEARLY_FULL = 995
MAX_MESSAGES = 1000
ANOTHER_DATABASE = 5


@pytest.fixture
def misled_web(service: Service) -> Iterator[str]:
    """The URL of one more web, which rings where nobody listens."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "web", "--port", str(port)],
        cwd=ROOT,
        env=environment(DATABASE_URL=service.database_url, BROKER_URL=another_broker_url(service)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: metrics(url), "it answers", 60)
        yield url
    finally:
        process.terminate()
        process.wait(40)


def another_broker_url(service: Service) -> str:
    return f"{service.broker_url.rpartition('/')[0]}/{ANOTHER_DATABASE}"


def metrics(url: str) -> dict[str, float]:
    """Empty while nobody answers."""
    try:
        text = urllib3.request("GET", f"{url}/metrics", retries=False, timeout=10).data.decode()
    except urllib3.exceptions.HTTPError:
        return {}
    lines = [line for line in text.splitlines() if line[:1] != "#"]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_rings_that_nobody_hears_are_bounded_and_seen(service: Service, misled_web: str) -> None:
    api = Api(misled_web)
    user_ids = [api.add_user() for _ in range(16)]  # of each lane
    by_sweep = 'payments_settled_by_total{by="sweep"}'
    before = metrics(service.url)
    with Redis.from_url(another_broker_url(service)) as broker:
        broker.lpush("settle", *["waits"] * NEARLY_FULL)
        contents = [transaction(user_id) for user_id in user_ids for _ in range(3)]
        for content in contents:
            assert api.put(content).status in (200, 202)
        wait_until(
            lambda: all(api.look_up(content["uid"]).json["status"] == "COMPLETED" for content in contents),
            "all settled",
        )
        assert NEARLY_FULL < broker.llen("settle") <= MAX_MESSAGES
        misled = metrics(misled_web)
        assert misled['payments_queue_messages{queue="settle"}'] > NEARLY_FULL
        assert misled['payments_queue_messages{queue="notify"}'] == 0
        assert misled["payments_rings_withheld_total"] > 0
        broker.delete("settle")
    assert metrics(service.url)[by_sweep] >= before[by_sweep] + len(contents)
