"""Web rings in one database of the broker, the workers listen in another: the queue stays bounded, and metrics tell."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from local.stack.ports import free_port
from tests.kit.http import Api, get, transaction
from tests.kit.processes import start_python
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

NEARLY_FULL = 995
MAX_MESSAGES = 1000
ANOTHER_DATABASE = 5


@pytest.fixture
def misled_web(service: Service, tmp_path: Path) -> Iterator[str]:
    """The URL of one more web, which rings where nobody listens."""
    port = free_port()
    process = start_python(
        *("-m", "web", "--port", str(port)),
        output=tmp_path / "web.log",
        DATABASE_URL=service.database_url,
        BROKER_URL=another_broker_url(service),
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
    answer = get(f"{url}/metrics", seconds=10)
    lines = [line for line in answer.body.decode().splitlines() if line[:1] != "#"] if answer else []
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

        def withheld() -> float:
            assert api.put(transaction(user_ids[0])).status in (200, 202)
            return metrics(misled_web)["payments_rings_withheld_total"]

        wait_until(withheld, "a ring is withheld, because the queue is full")
        assert broker.llen("settle") == MAX_MESSAGES
        misled = metrics(misled_web)
        assert misled['payments_queue_messages{queue="settle"}'] > NEARLY_FULL
        assert misled['payments_queue_messages{queue="notify"}'] == 0
        broker.delete("settle")
    assert metrics(service.url)[by_sweep] >= before[by_sweep] + len(contents)
