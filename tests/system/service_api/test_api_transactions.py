"""API.md, Transactions: states, and repeats, line by line against the running service."""

import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.kit.database import count_rows, held_lane, query
from tests.kit.http import MEMBERS, Api, Response, transaction
from tests.kit.service import Service

pytestmark = pytest.mark.system

NOWHERE = 2**63 - 1  # a user id that nobody has


def assert_answers(answer: Response, status: int, *, replayed: bool) -> None:
    assert answer.status == status, answer
    assert answer.headers.get("Idempotency-Replayed") == ("true" if replayed else None)
    if status != 409:
        assert answer.headers["Location"] == f"/api/transaction/{answer.json['uid']}"
    assert answer.headers.get("Retry-After") == ("1" if status == 202 else None)


def test_the_status_code_tells_pending_and_then_completed(api: Api, service: Service, user_id: int) -> None:
    content = transaction(user_id, amount="100.5", timestamp="2023-01-04T01:00:00+01:00")
    with held_lane(service.database_url, user_id):
        first, repeat = api.put(content), api.put(content)
    assert_answers(first, 202, replayed=False)
    assert_answers(repeat, 202, replayed=True)
    assert first.json == repeat.json
    assert list(first.json) == MEMBERS
    accepted_at = first.json["accepted_at"]
    pending = {"amount": "100.50", "status": "PENDING", "reason": None, "timestamp": "2023-01-04T00:00:00.000000Z"}
    assert first.json == {**content, **pending, "accepted_at": accepted_at, "settled_at": None, "balance_after": None}
    final = api.wait_final(content["uid"])
    assert final["settled_at"] >= accepted_at
    settled = {"status": "COMPLETED", "settled_at": final["settled_at"], "balance_after": "100.50"}
    assert final == {**first.json, **settled}
    third = api.put(content)
    assert_answers(third, 200, replayed=True)
    assert third.json == final
    assert api.ask("GET", third.headers["Location"]).json == final


def test_a_rejection_is_409_with_reason_and_transaction(api: Api, service: Service, user_id: int) -> None:
    content = transaction(user_id, type="WITHDRAW", amount="0.01")
    with held_lane(service.database_url, user_id):
        assert_answers(api.put(content), 202, replayed=False)
    final = api.wait_final(content["uid"])
    rejected = {"status": "REJECTED", "reason": "insufficient_funds", "timestamp": None, "balance_after": None}
    assert {name: final[name] for name in rejected} == rejected
    assert final["settled_at"]
    for _ in range(2):
        answer = api.put(content)
        assert_answers(answer, 409, replayed=True)
        assert answer.refused(409, "insufficient_funds").json["transaction"] == final
    assert api.look_up(content["uid"]).status == 200


def test_what_is_final_at_once_is_told_at_once(api: Api, user_id: int) -> None:
    assert_answers(api.deposit(user_id), 200, replayed=False)
    assert_answers(api.deposit(user_id, type="WITHDRAW", amount="100.01"), 409, replayed=False)


def test_without_a_timestamp_it_is_the_moment_of_settling(api: Api, user_id: int) -> None:
    for content in (transaction(user_id), transaction(user_id, timestamp=None)):
        done = api.put(content, Prefer="wait=15").json
        assert done["timestamp"] == done["settled_at"]


@pytest.mark.parametrize("seconds", [-50, 0, 50])
def test_a_timestamp_within_60_seconds_means_now(api: Api, user_id: int, seconds: int) -> None:
    asked = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
    done = api.deposit(user_id, timestamp=asked).json
    assert done["status"] == "COMPLETED"
    assert done["timestamp"] <= done["settled_at"]
    assert api.balance(user_id) == "100.00"


def test_a_late_rejection_says_how_to_pay_now(api: Api, user_id: int) -> None:
    api.deposit(user_id, "3.00", timestamp="2023-01-01")
    api.deposit(user_id, "100.00")
    content = transaction(user_id, type="WITHDRAW", amount="50.00", timestamp="2023-06-01T00:00:00Z")
    first = api.put(content, Prefer="wait=15").refused(409, "insufficient_funds")
    assert first.json["detail"].endswith(
        "from 2023-06-01T00:00:00.000000Z on the balance at its lowest was 3.00; "
        "send it without timestamp, under a new uid, to pay now."
    )
    now = transaction(user_id, type="WITHDRAW", amount="50.00")
    assert_answers(api.put(now, Prefer="wait=15"), 200, replayed=False)
    api.deposit(user_id, "60.00", timestamp="2023-02-01")  # the past is another now
    for _ in range(2):
        again = api.put(content).refused(409, "insufficient_funds")
        assert (again.json["detail"], again.json["transaction"]) == (first.json["detail"], first.json["transaction"])
    (listed,) = api.ask("PUT", "/api/transactions/", [content]).json["results"]
    assert (listed["status"], listed["detail"]) == ("REJECTED", first.json["detail"])


@pytest.mark.parametrize("members", [{"timestamp": "2023-06-01T00:00:00Z"}, {}])
def test_insufficient_funds_gives_no_further_hint(api: Api, user_id: int, members: dict[str, Any]) -> None:
    api.deposit(user_id, "49.99")
    content = transaction(user_id, type="WITHDRAW", amount="50.00", **members)
    for _ in range(2):
        refused = api.put(content, Prefer="wait=15").refused(409, "insufficient_funds")
        assert refused.json["detail"] == "The transaction was rejected: insufficient_funds."


def test_amounts_are_read_exactly(api: Api, user_id: int) -> None:
    for sent in (b"0.1", b"0.2", b"0.30", b'"0.4"', b"9999999999.99", b'"0.05"', b"1", b'"000.50"'):
        body = b'{"uid":"%s","user_id":%d,"type":"DEPOSIT","amount":%s}' % (str(uuid.uuid4()).encode(), user_id, sent)
        assert api.ask("PUT", "/api/transaction", body, {"Prefer": "wait=15"}).status == 200
    assert api.balance(user_id) == "10000000002.54"


SAME: list[dict[str, Any]] = [
    {},
    {"amount": 100},
    {"amount": 100.0},
    {"amount": "100"},
    {"amount": "100.0"},
    {"amount": "0100.00"},
    {"timestamp": "2023-01-04T03:00:00+03:00"},
    {"timestamp": "2023-01-04"},
    {"timestamp": "2023-01-04 00:00"},
]
OTHER: list[tuple[dict[str, Any], list[str]]] = [
    ({"amount": "100.01"}, ["amount"]),
    ({"type": "WITHDRAW"}, ["type"]),
    ({"timestamp": ...}, ["timestamp"]),
    ({"timestamp": "2023-01-04T00:00:01Z"}, ["timestamp"]),
    ({"timestamp": "2999-01-01"}, ["timestamp"]),
    ({"user_id": NOWHERE}, ["user_id"]),
    ({"user_id": NOWHERE, "type": "WITHDRAW", "amount": 1}, ["user_id", "type", "amount"]),
]


def test_a_repeat_is_known_by_value_not_by_spelling(api: Api, user_id: int) -> None:
    content = transaction(user_id, timestamp="2023-01-04T00:00:00Z")
    first = api.put(content, Prefer="wait=15").json
    for change in SAME:
        for spell in (str.lower, str.upper):
            answer = api.put({**content, "uid": spell(content["uid"]), **change})
            assert_answers(answer, 200, replayed=True)
            assert answer.json == first
    assert api.balance(user_id) == "100.00"


def test_a_uid_with_other_content_is_refused_naming_the_fields(api: Api, service: Service, user_id: int) -> None:
    content = transaction(user_id, timestamp="2023-01-04T00:00:00Z")
    api.put(content, Prefer="wait=15")
    before = count_rows(service.database_url)
    for change, fields in OTHER:
        changed = {name: value for name, value in {**content, **change}.items() if value is not ...}
        api.put(changed).refused(422, "uid_reused", *fields)
    assert count_rows(service.database_url) == before


def test_an_unknown_user_leaves_the_uid_free(api: Api, service: Service, user_id: int) -> None:
    before = count_rows(service.database_url)
    content = transaction(NOWHERE)
    for _ in range(2):
        api.put(content).refused(404, "user_not_found")
    assert count_rows(service.database_url) == before
    api.look_up(content["uid"]).refused(404, "transaction_not_found")
    assert_answers(api.put({**content, "user_id": user_id}, Prefer="wait=15"), 200, replayed=False)


def test_one_uid_sent_200_times_at_once_moves_money_once(api: Api, user_id: int) -> None:
    content = transaction(user_id, amount="7.00")
    with ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(lambda _: api.put(content), range(200)))
    assert {answer.status for answer in answers} <= {200, 202}
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert len({answer.json["accepted_at"] for answer in answers}) == 1
    final = api.wait_final(content["uid"])
    assert all(answer.json == final for answer in answers if answer.status == 200)
    assert api.balance(user_id) == "7.00"
    assert api.ask("GET", f"/api/user/{user_id}/transactions/").json["items"] == [final]


def test_of_100_concurrent_withdrawals_the_covered_complete(api: Api, service: Service, user_id: int) -> None:
    api.deposit(user_id, "95.00")
    contents = [transaction(user_id, type="WITHDRAW", amount="10.00") for _ in range(100)]
    with ThreadPoolExecutor(100) as threads:
        for answer in threads.map(api.put, contents):
            assert answer.status in (200, 202, 409)
    finals = [api.wait_final(content["uid"]) for content in contents]
    assert Counter(final["status"] for final in finals) == {"COMPLETED": 9, "REJECTED": 91}
    assert {final["reason"] for final in finals} == {None, "insufficient_funds"}
    assert api.balance(user_id) == "5.00"
    ledger = "SELECT count(*), sum(amount), min(balance_after) FROM ledger WHERE user_id = %s"
    assert query(service.database_url, ledger, user_id) == [(10, 500, 500)]


def by_polling(api: Api, content: dict[str, Any]) -> dict[str, Any]:
    assert api.put(content).status in (200, 202, 409)
    return api.wait_final(content["uid"])


def by_waiting(api: Api, content: dict[str, Any]) -> dict[str, Any]:
    answer = api.put(content, Prefer="wait=5")
    assert answer.headers["Preference-Applied"] == "wait=5"
    return dict(answer.json["transaction"] if answer.status == 409 else answer.json)


@pytest.mark.parametrize("send", [by_polling, by_waiting])
def test_the_published_sequence(api: Api, user_id: int, send: Callable[[Api, dict[str, Any]], dict[str, Any]]) -> None:
    assert send(api, transaction(user_id, amount=100.0, timestamp="2023-01-04"))["status"] == "COMPLETED"
    twice = transaction(user_id, type="WITHDRAW", amount=50.0, timestamp="2023-01-05T00:00:00")
    first, second = send(api, twice), send(api, twice)
    assert (first["status"], first) == ("COMPLETED", second)
    too_much = transaction(user_id, type="WITHDRAW", amount=60.0)
    assert send(api, too_much)["reason"] == "insufficient_funds"
    api.put(too_much).refused(409, "insufficient_funds")
    assert send(api, transaction(user_id, type="WITHDRAW", amount=10.0, timestamp="2023-02-05"))["balance_after"] == (
        "40.00"
    )
    assert api.balance(user_id) == "40.00"
    assert api.balance(user_id, "2023-01-30T00:00:00.00000000") == "50.00"
