"""API.md, Telling other services: against the running service, with receivers of the test's own."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from uuid import uuid4

import pytest
from celery import Celery
from urllib3 import HTTPHeaderDict

from tests.kit.database import query
from tests.kit.http import Api, transaction
from tests.kit.processes import family
from tests.kit.receiver import HANG, Receiver, receiving
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

MISSING = [
    *(("GET", "{}/"), ("DELETE", "{}/"), ("POST", "{}/test"), ("POST", "{}/rotate-secret"), ("GET", "{}/dead-letters")),
]
DONE, FUNDED, DEPLETED = "transaction.completed", "account.funded", "account.depleted"


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that may send to loopback."""
    started = Service(tmp_path_factory.mktemp("hooks") / "data", (), {"WEBHOOK_ALLOW_PRIVATE": "1"}).wait_ready()
    yield started
    started.stop()


@pytest.fixture
def api(open_service: Service) -> Api:
    return Api(open_service.url)


def add(api: Api, receiver: Receiver, *events: str, **members: str) -> dict[str, str]:
    answer = api.ask("POST", "/api/webhook/", {"url": receiver.url, "events": events or [DONE], **members})
    assert answer.status == 201, answer
    return dict(answer.json)


def test_a_webhook_is_added_listed_found_and_deleted(api: Api, receiver: Receiver) -> None:
    answer = api.ask(
        "POST", "/api/webhook/", {"url": receiver.url, "events": [DONE, FUNDED, DONE], "threshold": "5"}, expected=201
    )
    made = answer.json
    assert list(made) == ["id", "url", "events", "threshold", "secret"]
    assert (made["url"], made["events"], made["threshold"]) == (receiver.url, [DONE, FUNDED], "5.00")
    assert made["secret"].startswith("whsec_")
    found = api.ask("GET", answer.headers["Location"]).json
    assert found == {
        **{name: made[name] for name in ("id", "url", "events", "threshold")},
        "created_at": found["created_at"],
        "failing_since": None,
        "disabled_at": None,
        "disabled_reason": None,
    }
    listed = api.ask("GET", "/api/webhook")
    assert found in listed.json["items"]
    assert b"whsec_" not in listed.body
    assert api.ask("DELETE", f"/api/webhook/{made['id']}").status == 204
    api.ask("GET", f"/api/webhook/{made['id']}/").refused(404, "webhook_not_found")
    api.ask("DELETE", f"/api/webhook/{made['id']}/").refused(404, "webhook_not_found")


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"events": [DONE]}, "url"),
        ({"url": 7, "events": [DONE]}, "url"),
        ({"url": "ftp://example.com/", "events": [DONE]}, "url"),
        ({"url": "http://2130706433/", "events": [DONE]}, "url"),
        ({"url": "http://user:pass@example.com/", "events": [DONE]}, "url"),
        ({"url": "http://example.com/" + "a" * 2000, "events": [DONE]}, "url"),
        ({"url": "http://example.com/"}, "events"),
        ({"url": "http://example.com/", "events": []}, "events"),
        ({"url": "http://example.com/", "events": ["transaction.pending"]}, "events.0"),
        ({"url": "http://example.com/", "events": DONE}, "events"),
        *(
            ({"url": "http://example.com/", "events": [DONE], "threshold": bad}, "threshold")
            for bad in ("-1", "1.234", "", None, True, "NaN", "10000000000", [])
        ),
        ({"url": "http://example.com/", "events": [DONE], "secret": "mine"}, "secret"),
    ],
)
def test_bad_content_is_refused_by_field(api: Api, content: dict[str, object], field: str) -> None:
    api.ask("POST", "/api/webhook/", content).refused(422, "invalid_request", field)


@pytest.mark.parametrize("threshold", ["0", "0.00", 0, "7.5", 7.25, "9999999999.99"])
def test_a_threshold_is_an_amount_or_zero(api: Api, receiver: Receiver, threshold: object) -> None:
    answer = api.ask("POST", "/api/webhook/", {"url": receiver.url, "events": [DONE], "threshold": threshold})
    assert answer.status == 201
    assert float(answer.json["threshold"]) == float(str(threshold))


@pytest.mark.parametrize(("method", "path"), MISSING)
@pytest.mark.parametrize("webhook", ["999999", "0", "abc", "9" * 19, "9" * 30])
def test_an_unknown_webhook_is_not_found(api: Api, method: str, path: str, webhook: str) -> None:
    api.ask(method, f"/api/webhook/{path.format(webhook)}").refused(404, "webhook_not_found")


def test_private_addresses_are_refused_unless_allowed(service: Service) -> None:
    closed = Api(service.url)
    for url in (
        "http://127.0.0.1:9000/",
        "http://localhost/",
        "http://[::1]/",
        "http://192.168.1.1/",
        "http://169.254.169.254/",
    ):
        closed.ask("POST", "/api/webhook/", {"url": url, "events": [DONE]}).refused(422, "invalid_request", "url")


def test_funded_and_depleted_are_delivered_in_order(api: Api, receiver: Receiver) -> None:
    hook = add(api, receiver, DONE, FUNDED, DEPLETED, "transaction.rejected")
    user = api.add_user()
    api.deposit(user, "10.00")
    api.put(transaction(user, type="WITHDRAW", amount="11.00"))
    api.put(transaction(user, type="WITHDRAW", amount="10.00"), Prefer="wait=15")
    wait_until(lambda: len(receiver.of(user)) >= 5, "all are told", 60)
    assert receiver.told(user) == [(1, DONE), (1, FUNDED), (2, "transaction.rejected"), (3, DONE), (3, DEPLETED)]
    assert all(got.verified_by(hook["secret"]) for got in receiver.of(user))
    told = receiver.of(user)[3].json["data"]["transaction"]
    assert told == api.look_up(told["uid"]).json


def test_a_trial_and_a_rotation(api: Api, receiver: Receiver) -> None:
    hook = add(api, receiver)
    path = f"/api/webhook/{hook['id']}"
    assert api.ask("POST", f"{path}/test").json == {"delivered": True, "status": 200, "error": None}
    receiver.answer = lambda _: 302
    assert api.ask("POST", f"{path}/test/").json == {"delivered": False, "status": 302, "error": None}
    new = api.ask("POST", f"{path}/rotate-secret").json["secret"]
    api.ask("POST", f"{path}/test")
    first, _, last = receiver.got
    assert first.verified_by(hook["secret"])
    assert not first.verified_by(new)
    assert last.verified_by(new)
    assert last.verified_by(hook["secret"])


def test_all_secrets_of_a_day_are_valid_up_to_a_limit(api: Api, receiver: Receiver) -> None:
    hook = add(api, receiver)
    path = f"/api/webhook/{hook['id']}"
    secrets = [hook["secret"]] + [api.ask("POST", f"{path}/rotate-secret").json["secret"] for _ in range(9)]
    refused = api.ask("POST", f"{path}/rotate-secret").refused(429, "too_many_secrets")
    assert 0 < int(refused.headers["Retry-After"]) <= 86_400
    api.ask("POST", f"{path}/test")
    assert all(receiver.got[-1].verified_by(secret) for secret in secrets)


def test_a_repeat_with_the_same_key_returns_the_webhook(api: Api, receiver: Receiver) -> None:
    content, key = {"url": receiver.url, "events": [DONE], "threshold": "5"}, {"Idempotency-Key": str(uuid4())}
    first = api.ask("POST", "/api/webhook/", content, key, 201)
    again = api.ask("POST", "/api/webhook/", {**content, "threshold": "5.00"}, key, 201)
    assert (again.json, again.headers["Location"]) == (first.json, first.headers["Location"])
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    api.ask("POST", "/api/webhook/", {**content, "threshold": "6"}, key).refused(422, "key_reused")
    twice = HTTPHeaderDict(key)
    twice.add("idempotency-key", key["Idempotency-Key"])
    assert api.ask("POST", "/api/webhook/", content, twice, 201).json == first.json
    for bad in ("k" * 201, ""):
        sent = {"Idempotency-Key": bad}
        api.ask("POST", "/api/webhook/", content, sent).refused(422, "invalid_request", "Idempotency-Key")
    assert api.ask("POST", "/api/webhook/", content, expected=201).json["id"] != first.json["id"]
    assert api.ask("POST", "/api/webhook/", content, {"Idempotency-Key": "k" * 200}, 201).json["id"]


def test_one_idempotency_key_sent_at_once_adds_one_webhook(api: Api, receiver: Receiver) -> None:
    content, key = {"url": receiver.url, "events": [DONE]}, {"Idempotency-Key": str(uuid4())}
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: api.ask("POST", "/api/webhook/", content, key, 201), range(10)))
    assert len({answer.body for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1


def test_a_replay_from_the_beginning(api: Api, receiver: Receiver) -> None:
    hook, user = add(api, receiver), api.add_user()
    api.deposit(user)
    wait_until(lambda: receiver.told(user) == [(1, DONE)], "told")
    path = f"/api/webhook/{hook['id']}/replay"
    for bad in ({"after": "?"}, {"after": None}, {"after": 7}, {"after": "AAAA"}):
        api.ask("POST", path, bad).refused(422, "invalid_request", "after")
    assert api.ask("POST", path, {"after": ""}).json["id"] == hook["id"]
    wait_until(lambda: receiver.told(user) == [(1, DONE)] * 2, "told again", 60)
    first, second = receiver.of(user)
    assert (first.id, first.body) == (second.id, second.body)


def test_dead_letters_are_shown(api: Api, open_service: Service, receiver: Receiver) -> None:
    hook, user = add(api, receiver), api.add_user()
    receiver.answer = lambda _: 500
    api.deposit(user)
    wait_until(lambda: receiver.told(user), "tried")
    table = f"deliveries SET attempts = 19, next_attempt_at = now() WHERE webhook_id = {hook['id']} AND claimed_until IS NULL"
    letters = f"/api/webhook/{hook['id']}/dead-letters"

    def given_up() -> bool:
        query(open_service.database_url, f"UPDATE {table} AND delivered_at IS NULL AND dead_at IS NULL RETURNING 1")
        return bool(api.ask("GET", letters).json["items"])

    wait_until(given_up, "given up")
    answer = api.ask("GET", f"{letters}?limit=1").json
    (letter,) = answer["items"]
    assert (letter["type"], letter["user_id"], letter["error"]) == (DONE, user, "status 500")
    api.ask("GET", f"{letters}?cursor=x").refused(422, "invalid_request", "cursor")
    metrics = api.ask("GET", "/metrics").body.decode()
    assert "payments_webhook_dead_letters 1.0" in metrics
    assert 'payments_webhook_deliveries_total{outcome="dead"}' in metrics


def test_a_hanging_receiver_delays_no_other(api: Api, receiver: Receiver) -> None:
    """How soon, is measured in the benchmark (`told`)."""
    with receiving() as ill:
        ill.answer = lambda _: HANG
        users = [api.add_user() for _ in range(20)]
        bad, _ = add(api, ill), add(api, receiver)
        for _ in range(25):
            payments = [transaction(user) for user in users]
            assert api.ask("PUT", "/api/transactions/", payments).status == 202
        assert api.wait_final(payments[-1]["uid"])["status"] == "COMPLETED"
        whole = [(seq, DONE) for seq in range(1, 26)]
        wait_until(lambda: all(receiver.told(user) == whole for user in users), "all are told, in order", 60)
        assert 1 <= ill.most_at_once <= 8
        assert len(ill.got) < len(users), "it has hung all the while"
        assert api.ask("DELETE", f"/api/webhook/{bad['id']}/").status == 204


def test_killed_notifiers_lose_nothing_and_keep_the_order(api: Api, open_service: Service, receiver: Receiver) -> None:
    add(api, receiver)
    users = [api.add_user() for _ in range(5)]
    for seq in range(1, 9):
        for user in users:
            api.put(transaction(user))
        if seq in (3, 6):
            old = open_service.pid_of("notify")
            for pid in family(old):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: [p for p in open_service.ps() if p["role"] == "notify" and p["pid"] != old], "another")  # noqa: B023
    whole = [(seq, DONE) for seq in range(1, 9)]
    wait_until(lambda: all(list(dict.fromkeys(receiver.told(user))) == whole for user in users), "all in order", 60)


def test_a_notifier_that_takes_no_messages_is_replaced(
    start_service: Callable[..., Service], receiver: Receiver
) -> None:
    """Its own loop goes on telling, by a few threads: nobody would ever notice."""
    service = start_service(WEBHOOK_ALLOW_PRIVATE="1", PAYMENTS_DEAF_SECONDS="2")
    api, deaf = Api(service.url), service.pid_of("notify")
    add(api, receiver)
    with Celery("tests", broker=service.broker_url, set_as_current=False) as control:
        control.control.cancel_consumer("notify")
        user, seqs = api.add_user(), count(1)

        def another_consumes() -> bool:
            api.put(transaction(user))  # each event is a message that nobody takes
            next(seqs)
            return [p["pid"] for p in service.ps() if p["role"] == "notify"] not in ([deaf], [])

        wait_until(another_consumes, "another notifier", 60)
    whole = [(seq, DONE) for seq in range(1, next(seqs))]
    wait_until(lambda: list(dict.fromkeys(receiver.told(user))) == whole, "all in order", 60)


def test_with_the_broker_away_webhooks_are_told_all_the_same(
    start_service: Callable[..., Service], receiver: Receiver
) -> None:
    service = start_service(WEBHOOK_ALLOW_PRIVATE="1")
    api = Api(service.url)
    add(api, receiver)
    user = api.add_user()
    broker = service.pid_of("broker")
    os.kill(broker, signal.SIGSTOP)
    try:
        api.put(transaction(user))
        wait_until(lambda: receiver.told(user) == [(1, DONE)], "told", 60)
    finally:
        os.kill(broker, signal.SIGCONT)
