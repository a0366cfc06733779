"""Flower as a container starts it: closed by a password; and what it tells of the work."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from local.stack.ports import free_port
from tests.kit.http import Api, get, status, transaction
from tests.kit.processes import start_python
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

PASSWORD = "operator:a-good-secret"
BY_ENVIRONMENT, BY_OPTION = {"FLOWER_BASIC_AUTH": PASSWORD}, [f"--basic-auth={PASSWORD}"]


@pytest.fixture(params=["environment", "option"])
def flower(request: pytest.FixtureRequest, service: Service, tmp_path: Path) -> Iterator[str]:
    """Its URL."""
    port = free_port()
    given = {"BROKER_URL": service.broker_url, **(BY_ENVIRONMENT if request.param == "environment" else {})}
    options = BY_OPTION if request.param == "option" else []
    process = start_python(
        *("-m", "worker", "flower", f"--port={port}", *options), output=tmp_path / "flower.log", **given
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: status(f"{url}/healthcheck") == 200, "Flower answers", 60)
        yield url
    finally:
        process.kill()
        process.wait()


def authorized(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"} if password else {}


def fetch_json(url: str) -> Any:
    answer = get(url, authorized(PASSWORD))
    assert answer, "no whole answer"
    assert answer.status == 200, answer
    return answer.json


def test_without_a_password_flower_shows_health_and_metrics(flower: str) -> None:
    for page in ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/queues/length"):
        assert [status(flower + page, authorized(given)) for given in ("", "operator:wrong", PASSWORD)] == [
            401,
            401,
            200,
        ], page
    # Both are open whatever is set: they belong on no ingress.
    assert [status(flower + page) for page in ("/healthcheck", "/metrics")] == [200, 200]


@pytest.mark.parametrize("flower", ["environment"], indirect=True)
def test_a_task_tells_what_it_settled(flower: str, service: Service) -> None:
    api = Api(service.url)
    user = api.add_user()
    told: dict[str, Any] = {}

    def rang() -> bool:
        """A payment whose ring Flower, which sees only what comes after it, has seen the end of."""
        pays = transaction(user, amount="1.00"), transaction(user, type="WITHDRAW", amount="9000.00")
        api.ask("PUT", "/api/transactions/", pays, expected=202)
        api.wait_final(pays[1]["uid"])
        listed = fetch_json(f"{flower}/api/tasks?limit=50")
        told.update({uid: task for uid, task in listed.items() if task["state"] == "SUCCESS"})
        return pays[0]["uid"] in told and told[pays[0]["uid"]]["name"] == "settle"

    wait_until(rang, "Flower tells of a ring under the uid that rang", 60)
    results = {task["result"] for task in told.values()}
    assert f"'1 completed, 1 rejected; lane {user % 16}'" in results, results


@pytest.mark.parametrize("flower", ["environment"], indirect=True)
def test_queues_are_seen_also_those_that_came_after_it(flower: str, service: Service) -> None:
    def queues() -> set[str]:
        listed = fetch_json(f"{flower}/api/queues/length")["active_queues"]
        return {queue["name"] for queue in listed}

    wait_until(lambda: queues() == {"settle", "notify"}, "both queues are seen", 60)
    with Celery("tests", broker=service.broker_url, set_as_current=False) as control:
        control.control.add_consumer("later")
        try:
            wait_until(lambda: "later" in queues(), "the later one is seen", 60)
        finally:
            control.control.cancel_consumer("later")
