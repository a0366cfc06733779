"""API.md, the feed: pages of events against the running service."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from payments_client import Payments
from tests.kit.database import held_lane, query
from tests.kit.http import MEMBERS, Api, transaction
from tests.kit.service import Service

pytestmark = pytest.mark.system

ITEM = ["id", "type", "user_id", "user_seq", "balance", "occurred_at", "transaction"]


def page(api: Api, after: str, rest: str = "") -> dict[str, Any]:
    answer = api.ask("GET", f"/api/events/?after={after}{rest}")
    assert answer.status == 200, answer
    assert list(answer.json) == ["items", "next"]
    assert re.fullmatch("[A-Za-z0-9_-]+", answer.json["next"])
    return dict(answer.json)


def pages(api: Api, after: str = "", rest: str = "") -> Iterator[dict[str, Any]]:
    while (read := page(api, after, rest))["items"]:
        yield read
        after = read["next"]
    assert read["next"] == after or not after


def read_all(api: Api, after: str = "", rest: str = "") -> list[dict[str, Any]]:
    return [item for read in pages(api, after, rest) for item in read["items"]]


def end(api: Api) -> str:
    """Where a test begins."""
    after = ""
    for read in pages(api, after, "&limit=1000"):
        after = read["next"]
    return after or page(api, "")["next"]


@pytest.fixture(scope="module")
def paid(api: Api) -> tuple[str, list[int], list[dict[str, Any]]]:
    """The cursor before some outcomes of two users, the users, and the transactions as they became."""
    start, users = end(api), [api.add_user(), api.add_user()]
    asked = [("DEPOSIT", "5.00"), ("WITHDRAW", "7.00"), ("WITHDRAW", "1.50"), ("DEPOSIT", "0.01")]
    sent = [transaction(user, type=type_, amount=amount) for type_, amount in asked for user in users]
    for content in sent:
        assert api.put(content, Prefer="wait=15").status in (200, 409)
    return start, users, [api.look_up(content["uid"]).json for content in sent]


def test_an_event_contains_the_transaction_as_the_api_shows_it(
    api: Api, paid: tuple[str, list[int], list[dict[str, Any]]]
) -> None:
    start, users, transactions = paid
    items = read_all(api, start)
    assert [item["transaction"] for item in items] == transactions
    assert [list(item) for item in items] == [ITEM] * 8
    assert [list(item["transaction"]) for item in items] == [MEMBERS] * 8
    for user in users:
        own = [item for item in items if item["user_id"] == user]
        assert [(item["user_seq"], item["type"], item["balance"]) for item in own] == [
            (1, "transaction.completed", "5.00"),
            (2, "transaction.rejected", "5.00"),
            (3, "transaction.completed", "3.50"),
            (4, "transaction.completed", "3.51"),
        ]
        assert [item["id"] for item in own] == sorted(item["id"] for item in own)
    assert all(item["occurred_at"] == item["transaction"]["settled_at"] for item in items)


@pytest.mark.parametrize("limit", [1, 3, 7, 8, 9, 1000])
def test_pages_hold_what_was_asked_for_and_together_all(
    api: Api, paid: tuple[str, list[int], list[dict[str, Any]]], limit: int
) -> None:
    start, users, transactions = paid
    got = list(pages(api, start, f"&limit={limit}"))
    assert [item["transaction"] for read in got for item in read["items"]] == transactions
    assert all(len(read["items"]) == limit for read in got[:-1])
    for user in users:
        own = [row for row in transactions if row["user_id"] == user]
        assert [item["transaction"] for item in read_all(api, start, f"&limit={limit}&user_id={user}")] == own
        assert [item["transaction"] for item in read_all(api, "", f"&limit={limit}&user_id={user}")] == own


def test_what_is_settled_later_comes_behind_the_end(api: Api) -> None:
    user = api.add_user()
    before, own = end(api), page(api, end(api), f"&user_id={user}")["next"]
    assert page(api, before) == {"items": [], "next": before}
    uid = api.deposit(user).json["uid"]
    for items in (read_all(api, before), read_all(api, own, f"&user_id={user}")):
        assert [item["transaction"]["uid"] for item in items] == [uid]


def test_what_waits_is_not_told_before_it_is_final(api: Api, service: Service) -> None:
    user, before = api.add_user(), end(api)
    with held_lane(service.database_url, user):
        uid = api.put(transaction(user)).json["uid"]
        assert page(api, before)["items"] == []
    api.wait_final(uid)
    assert [item["transaction"]["uid"] for item in read_all(api, before)] == [uid]


@pytest.mark.parametrize("path", ["/api/events", "/api/events/", "/api/events?after=", "/api/events/?after="])
def test_without_a_cursor_the_feed_starts_at_the_beginning(
    api: Api, paid: tuple[str, list[int], list[dict[str, Any]]], path: str
) -> None:
    first = api.ask("GET", path).json["items"]
    assert first == page(api, "")["items"]
    ids = [item["id"] for item in first]
    assert ids == sorted(ids)
    assert 8 <= len(ids) <= 100


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("after=x", "after"),
        ("after=%00", "after"),
        ("after=1", "after"),
        ("after=None", "after"),
        ("after=1" + "-0" * 15, "after"),
        ("after=1" + "-0" * 17, "after"),
        ("after=1" + "-8000000000000000" * 16, "after"),
        ("after=1" + "-0" * 16 + "_1", "after"),
        ("after=1" + "-0" * 16 + "%0A", "after"),
        ("after=2" + "-0" * 16, "after"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=1.0", "limit"),
        ("user_id=0", "user_id"),
        ("user_id=-1", "user_id"),
        ("user_id=x", "user_id"),
        ("user_id=", "user_id"),
        ("user_id=1.0", "user_id"),
        (f"user_id={2**63}", "user_id"),
        ("cursor=", "cursor"),
    ],
)
def test_what_cannot_be_read_is_refused(api: Api, query: str, field: str) -> None:
    api.ask("GET", f"/api/events/?{query}").refused(422, "invalid_request", field)


def test_a_user_who_does_not_exist_is_not_found(api: Api) -> None:
    for after in ("", end(api), "1" + "-0" * 16 + f"_{2**63 - 1:x}-1", "1" + f"-{2**63 - 1:x}" * 16):
        api.ask("GET", f"/api/events/?after={after}&user_id={2**63 - 1}").refused(404, "user_not_found")


def test_a_cursor_ahead_of_the_books_is_told_so(api: Api, service: Service, paid: tuple[str, list[int], Any]) -> None:
    """As after a restore: the events behind it are not those that the reader knows."""
    user = paid[1][0]
    ((last,),) = query(service.database_url, "SELECT last_value FROM events_id_seq")
    lanes = page(api, "")["next"].split("-")[1:]
    for lane in range(16):
        ahead = "-".join(["1", *lanes[:lane], f"{last + 100_000:x}", *lanes[lane + 1 :]])
        for rest in ("", f"&user_id={user}"):
            api.ask("GET", f"/api/events/?after={ahead}{rest}").refused(409, "cursor_ahead")
    hook = api.ask("POST", "/api/webhook/", {"url": "https://example.com/", "events": ["account.funded"]})
    if hook.status == 201:
        api.ask("POST", f"/api/webhook/{hook.json['id']}/replay", {"after": ahead}).refused(409, "cursor_ahead")
        assert api.ask("DELETE", f"/api/webhook/{hook.json['id']}/").status == 204
    place = page(api, "", f"&user_id={user}")["next"].rpartition("_")[0]
    api.ask("GET", f"/api/events/?after={place}_{user:x}-1000&user_id={user}").refused(409, "cursor_ahead")
    assert page(api, "-".join(["1", *[f"{last:x}"] * 16]))["items"] == [], "the last number given is not ahead"


def test_a_cursor_at_the_end_is_not_ahead_after_pruning(start_service: Callable[..., Service]) -> None:
    service = start_service()
    api = Api(service.url)
    user = api.add_user()
    api.deposit(user)
    last = end(api)
    assert query(service.database_url, "DELETE FROM events RETURNING 1") == [(1,)]
    assert page(api, last) == {"items": [], "next": last}
    uid = api.deposit(user).json["uid"]
    assert [item["transaction"]["uid"] for item in read_all(api, last)] == [uid]


def test_the_feed_is_empty_before_the_first_payment(
    start_service: Callable[..., Service],
) -> None:
    api = Api(start_service().url)
    start = page(api, "")
    assert start["items"] == []
    assert page(api, start["next"]) == start
    user = api.add_user()
    assert page(api, start["next"], f"&user_id={user}") == start
    uid = api.deposit(user).json["uid"]
    assert [item["transaction"]["uid"] for item in read_all(api, start["next"])] == [uid]


@pytest.mark.parametrize("narrowed", [False, True])
def test_the_client_reads_the_feed_page_by_page(service: Service, api: Api, narrowed: bool) -> None:
    payments = Payments(service.url)
    start, user = end(api), payments.add_user("Ada").id
    read = partial(payments.events, user_id=user if narrowed else None, page_size=2)
    sent = [payments.deposit(user, "1.00") for _ in range(5)]
    got = list(read(start))
    assert [len(one.items) for one in got] == [2, 2, 1]
    events = [event for one in got for event in one.items]
    assert [event.transaction for event in events] == sent
    assert [(event.type, event.user_seq, event.balance) for event in events] == [
        ("transaction.completed", number, number) for number in (1, 2, 3, 4, 5)
    ]
    assert list(read(got[-1].next)) == []
    payments.deposit(user, "1.00")
    assert [event.user_seq for one in read(got[-1].next) for event in one.items] == [6]
