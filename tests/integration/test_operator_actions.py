"""Operator actions are recorded in the transaction that does them: who, what, of which; never a secret."""

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shared.auth import api_keys
from shared.auth.scopes import Scope
from shared.database import autocommit
from shared.operator_actions import Action, read_newest
from shared.payments.parked import Released, release, release_matching
from shared.payments.queries import lanes
from shared.payments.settle import work_lanes
from shared.settings import settings
from shared.webhooks import manage
from shared.webhooks.deliver import deliver_webhook, expand
from shared.webhooks.model import NewWebhook
from tests.integration.factories import (
    accepted,
    deposit,
    new_user,
    new_users,
    outsider,
    plain_engine,
    run_sql,
    settled,
    states,
    withdrawal,
)
from tests.integration.planted_bug import UNLUCKY, are_parked
from tests.kit.receiver import receiving
from web.app import create_app

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("receivers_on_loopback")]

DONE = "transaction.completed"
ADA = "ada@box"


@pytest.fixture
def client() -> FlaskClient:
    return create_app().test_client()


def newest(limit: int = 1) -> list[Action]:
    """The last actions, the oldest of them first."""
    with autocommit() as connection:
        return read_newest(connection, limit)[::-1]


def last_id() -> int:
    return max((action.id for action in newest()), default=0)


def test_a_key_is_recorded_without_its_secret() -> None:
    key_id, key = api_keys.create("audited", Scope.READ, ADA)
    assert api_keys.revoke(key_id, ADA)
    assert not api_keys.revoke(2**62, ADA)
    created, revoked = newest(2)
    assert (created.actor, created.action, created.target) == (ADA, "key.create", str(key_id))
    assert created.details == {"name": "audited", "scope": "read"}
    assert (revoked.actor, revoked.action, revoked.target, revoked.details) == (ADA, "key.revoke", str(key_id), {})
    with autocommit() as connection:
        everything = str(connection.execute(text("SELECT operator_actions::text FROM operator_actions")).all())
    assert key.split("_", 2)[2] not in everything


def test_webhook_changes_are_recorded_with_their_key(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYMENTS_AUTH", "required")
    settings.cache_clear()
    key_id, key = api_keys.create("integrator", Scope.ADMIN)
    headers = {"Authorization": f"Bearer {key}"}
    url = "https://example.com:8443/hooks/secret-path?token=secret-token"
    monkeypatch.setattr("shared.webhooks.transport.find_addresses", lambda *_: [])  # no name is resolved here
    made = client.post("/api/webhook/", json={"url": url, "events": [DONE]}, headers=headers)
    assert made.status_code == 201
    hook, secret = str(made.json["id"]), made.json["secret"]
    secrets = [secret, client.post(f"/api/webhook/{hook}/rotate-secret", headers=headers).json["secret"]]
    cursor = client.get("/api/events/", headers=headers).json["next"]
    assert client.post(f"/api/webhook/{hook}/replay", json={"after": cursor}, headers=headers).status_code == 200
    assert client.delete(f"/api/webhook/{hook}/", headers=headers).status_code == 204
    assert client.delete(f"/api/webhook/{hook}/", headers=headers).status_code == 404

    actions = newest(4)
    words = ["webhook.create", "webhook.rotate_secret", "webhook.replay", "webhook.delete"]
    assert [action.action for action in actions] == words
    assert {(action.actor, action.target) for action in actions} == {(f"key {key_id} integrator", hook)}
    assert actions[0].details == {"host": "example.com:8443", "events": [DONE]}
    assert len(actions[2].details["after"]) == 16
    assert not [word for word in (*secrets, "secret-path", "secret-token") if word in str(actions)]


def test_a_caller_without_a_key_is_recorded_by_address(client: FlaskClient) -> None:
    with receiving() as receiver:
        made = client.post("/api/webhook/", json={"url": receiver.url, "events": [DONE]})
    assert made.status_code == 201
    assert newest()[0].actor == "no key, 127.0.0.1"


def test_a_webhook_switched_off_by_the_service_is_recorded() -> None:
    with receiving() as receiver:
        receiver.answer = lambda _: 410
        webhook, *_ = manage.register(NewWebhook(receiver.url, [DONE], 0))
        settled(deposit(new_user(), 1))
        while expand():
            pass
        deliver_webhook(webhook.id)
    action = newest()[0]
    assert (action.actor, action.action, action.target) == ("service", "webhook.disable", str(webhook.id))
    assert action.details == {"reason": "the receiver answered 410"}


def test_an_action_that_cannot_be_recorded_is_not_done() -> None:
    """And the other way round: one transaction holds both."""
    key_id, _ = api_keys.create("kept", Scope.READ)
    webhook, secret, _ = manage.register(NewWebhook("http://127.0.0.1:9999/", [DONE], 0))
    before = last_id()
    run_sql("ALTER TABLE operator_actions ADD CONSTRAINT broken CHECK (false) NOT VALID")
    try:
        for act in (
            lambda: api_keys.create("lost", Scope.READ),
            lambda: api_keys.revoke(key_id),
            lambda: manage.register(NewWebhook("http://127.0.0.1:9999/", [DONE], 0)),
            lambda: manage.rotate_secret(webhook.id),
            lambda: manage.replay(webhook.id, [0] * 16),
            lambda: manage.delete(webhook.id),
        ):
            with pytest.raises(DBAPIError, match="broken"):
                act()
    finally:
        run_sql("ALTER TABLE operator_actions DROP CONSTRAINT broken")
    assert last_id() == before
    assert [key.revoked_at for key in api_keys.list_all() if key.id == key_id] == [None]
    assert not [key for key in api_keys.list_all() if key.name == "lost"]
    assert [found.id for found in manage.list_all()] == [webhook.id]
    with plain_engine().connect() as connection:
        assert connection.scalar(text(f"SELECT secret FROM webhooks WHERE id = {webhook.id}")) == secret


def released(error: str) -> Released:
    *_, last = release_matching(error, ADA)
    return last


def park_users(count: int, lane: int, rows: int = 3) -> list[list[object]]:
    """Users whose first deposit fails and whose others wait behind it; the bug must be planted."""
    others = new_users(count + 1, lane)
    requests = [[deposit(user, UNLUCKY), *(withdrawal(user, 1) for _ in range(rows - 1))] for user in others[1:]]
    accepted(deposit(others[0], 1), *(request for of_user in requests for request in of_user))
    for _ in range(3):
        work_lanes([lane])
    assert all(all(are_parked(*of_user)) for of_user in requests)
    return requests


def test_all_that_is_parked_is_released_in_order(bug: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = park_users(5, lane=3), park_users(4, lane=12)
    monkeypatch.setattr("shared.payments.parked.RELEASE_BATCH_ROWS", 2)
    monkeypatch.setattr("shared.payments.parked.RELEASE_PAGE_SIZE", 3)
    bug.undo()
    before = last_id()
    progress = []
    for done in release_matching("", ADA):
        progress.append(done)
        for of_user in first + second:
            parked = are_parked(*of_user)
            assert parked == sorted(parked), "none is released before an earlier one of its user"
    assert progress[-1] == Released(rows=27)
    assert [done.rows for done in progress] == sorted(done.rows for done in progress)
    assert not any(any(are_parked(*of_user)) for of_user in first + second)
    recorded = [action for action in newest(100) if action.id > before]
    assert {(action.actor, action.action, action.target) for action in recorded} == {(ADA, "parked.release", "all")}
    assert sum(action.details["rows"] for action in recorded) == 27
    assert max(action.details["rows"] for action in recorded) == 2
    for lane in (3, 12):
        work_lanes([lane])
    for of_user in first + second:  # 13 in, then two times 1 out: in another order they would be rejected
        assert states(*of_user) == ["COMPLETED"] * 3
    assert released("") == Released()


def test_only_users_with_that_error_are_released(bug: pytest.MonkeyPatch) -> None:
    others, wanted = park_users(2, lane=5), park_users(2, lane=6)
    uids = [str(request.uid) for of_user in wanted for request in of_user[:1]]
    run_sql(
        "UPDATE transactions SET last_error = 'Timeout 100% of it' WHERE uid = ANY(CAST(:uids AS uuid[]))", uids=uids
    )
    bug.undo()
    assert released("waits behind") == Released(), "followers wait for their first one"
    assert released("100%") == Released(rows=6)
    assert newest()[0].target == "error: 100%"
    assert [are_parked(*of_user) for of_user in others + wanted] == [[True] * 3] * 2 + [[False] * 3] * 2
    assert released("A PLANTED bug") == Released(rows=6)
    for lane in (5, 6):
        work_lanes([lane])


def test_a_release_of_all_ends_while_rows_are_parked_again(
    bug: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that still has the bug parks each row as soon as it is released."""
    park_users(3, lane=7, rows=2)
    monkeypatch.setattr("shared.payments.parked.RELEASE_BATCH_ROWS", 1)
    rows = 0
    for done in release_matching("", ADA):
        rows = done.rows
        assert rows <= 6
        accepted(deposit(new_user(lane=7), 1))
        work_lanes([7])
    assert rows == 6
    bug.undo()


def test_a_busy_lane_is_left_and_counted(bug: pytest.MonkeyPatch) -> None:
    busy, free = park_users(2, lane=8), park_users(2, lane=9)
    bug.undo()
    with outsider() as other:
        lanes.lock_lane(other, 8)
        assert released("") == Released(rows=6, busy_users=2)
    assert [all(are_parked(*of_user)) for of_user in busy + free] == [True, True, False, False]
    assert release(busy[0][0].uid, ADA) == 3
    action = newest()[0]
    assert (action.actor, action.target, action.details) == (ADA, str(busy[0][0].uid), {"lane": 8, "rows": 3})
    for lane in (8, 9):
        work_lanes([lane])
