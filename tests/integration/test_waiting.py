"""Prefer: wait is best effort: where no more may wait, or the process ends, the answer comes at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.integration.given import deposit, new_user
from web import waiting
from web.app import create_app
from web.intake import intake
from web.waiting import WaitingRoom

pytestmark = pytest.mark.integration


@pytest.fixture
def client() -> FlaskClient:
    return create_app().test_client()


def ask(client: FlaskClient, uid: object) -> Any:
    return client.get(f"/api/transaction/{uid}", headers={"Prefer": "wait=30"})


def test_beyond_those_who_may_wait_the_answer_comes_at_once(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MAX_WAITERS", 0)
    intake.submit([pending := deposit(new_user(), 1)])
    answer = ask(client, pending.uid)
    assert (answer.status_code, answer.json["status"]) == (200, "PENDING")
    assert "Preference-Applied" not in answer.headers


def test_who_waits_is_answered_when_the_process_ends_and_nobody_waits_from_then_on(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = WaitingRoom()
    monkeypatch.setattr(waiting, "room", room)
    intake.submit([pending := deposit(new_user(), 1)])
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(ask, client, pending.uid)
        deadline = time.monotonic() + 10
        while not room._waiters:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        room.close()
        assert "Preference-Applied" not in asked.result(10).headers
    assert "Preference-Applied" not in ask(client, pending.uid).headers
