"""API.md, PUT /api/transactions/: each item judged alone, as a single PUT would; in order; one commit; limits."""

import json
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg2  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.database import count_rows, held_lane, query
from tests.kit.http import JSON, Api, Response, transaction
from tests.kit.processes import family
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system

NDJSON = "application/x-ndjson"
MAX_LIST_ITEMS = 10_000
MAX_LIST_BYTES = 4 * 1024 * 1024
MAX_LISTS = 16  # at once
NO_USER = 2**62


@pytest.fixture(scope="module")
def user_id(api: Api) -> int:
    return api.add_user()


def put(api: Api, body: Any, media: str = JSON, **headers: str) -> Response:
    return api.ask("PUT", "/api/transactions/", body, {"Content-Type": media, **headers})


def written(items: list[Any], media: str = JSON) -> bytes:
    """A list of values, or of bytes that stand for items as they are."""
    each = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]
    return b"[%s]" % b",".join(each) if media == JSON else b"\n".join(each)


def results(api: Api, items: list[Any], media: str = JSON) -> list[dict[str, Any]]:
    answer = put(api, written(items, media), media)
    assert (answer.status, answer.media) == (202, JSON), answer
    found = answer.json["results"]
    assert len(found) == len(items)
    return list(found)


def wait_final(api: Api, items: list[Any], media: str = JSON) -> list[str]:
    def states() -> list[str]:
        return [result["status"] for result in results(api, items, media)]

    wait_until(lambda: "PENDING" not in states(), "all are final", 60)
    return states()


BAD: list[tuple[Any, Any, str]] = [  # an item, the uid that is told, the code
    (5, None, "invalid_request"),
    ([], None, "invalid_request"),
    ({}, None, "invalid_request"),
    ({"uid": "x y"}, "x y", "invalid_request"),
    ({"uid": "\0"}, None, "invalid_request"),
    ({"uid": "x" * 200}, "x" * 200, "invalid_request"),
    ({"uid": "x" * 201}, None, "invalid_request"),
    (rb'{"uid": "\ud800"}', None, "invalid_request"),
    ({"uid": ["x"]}, None, "invalid_request"),
    (transaction(1, uid="0193E7A5-5BB2-7B3C-8F0A-3F2D6F1F2A10", amount="0"), ..., "invalid_request"),
    (b'{"uid": "a", "uid": "a"}', None, "not_json"),
    (transaction(NO_USER), ..., "user_not_found"),
    (transaction(1, timestamp="9000-01-01"), ..., "invalid_request"),
]


@pytest.mark.parametrize("media", [JSON, NDJSON])
def test_results_are_in_order_and_items_are_independent(api: Api, service: Service, user_id: int, media: str) -> None:
    known = transaction(user_id)
    api.put(known)
    reused = {**known, "amount": "5"}
    bad = [*BAD, (reused, known["uid"], "uid_reused")]
    if media == NDJSON:
        bad += [(b"x", None, "not_json"), (b'{"uid":', None, "not_json"), (b"\xff", None, "not_json")]
    good = [transaction(user_id, amount=1) for _ in bad]
    before = count_rows(service.database_url)[1]
    found = results(
        api, [item for good_one, (item, _, _) in zip(good, bad, strict=True) for item in (good_one, item)], media
    )
    for result, content in zip(found[::2], good, strict=True):
        assert result == {"uid": content["uid"], "status": result["status"]}
        assert result["status"] in ("PENDING", "COMPLETED")
    for result, (item, uid, code) in zip(found[1::2], bad, strict=True):
        told = item["uid"].lower() if uid is ... else uid
        assert (result["uid"], result["status"], result["code"]) == (told, "INVALID", code)
        assert result["detail"]
    assert count_rows(service.database_url)[1] == before + len(good)
    assert wait_final(api, good) == ["COMPLETED"] * len(good)


UIDS = st.integers(0, 3)
AMOUNTS = st.sampled_from(["1", 1, "1.00", "0", "-1", "1.001", "1e2", None, "10000000000", 2.5, True, [1], "2.50"])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "user_id": st.sampled_from(["good", "good", "other", NO_USER, 0, "1", 1.0, 2**63, None]),
    "type": st.sampled_from(["DEPOSIT", "DEPOSIT", "WITHDRAW", "deposit", 1, None]),
    "amount": AMOUNTS,
}
MORE: dict[str, st.SearchStrategy[Any]] = {
    "timestamp": st.sampled_from([None, "2024-01-01", "2024-01-01T00:00:00Z", "9999-01-01", "x", 5]),
    "more": st.just(1),
    "x" * 300: st.just({}),
}
ITEMS = st.one_of(
    st.fixed_dictionaries({"uid": UIDS, **FIELDS}, optional=MORE),
    st.fixed_dictionaries({"uid": UIDS, **FIELDS}, optional=MORE),
    st.fixed_dictionaries({}, optional={"uid": UIDS, **FIELDS, **MORE}),
    st.sampled_from(
        [b"{}", b"[]", b"NaN", b'"x"', b'{"uid": "x"}', b'{"a": 1, "a": 2}', b'{"amount": 1e999}', b"null"]
    ),
)
BROKEN_LINES = st.sampled_from(
    [b"{", b"x", b"\xff", b'{"a": 01}', b"[1", b"1 2", b"\xef\xbb\xbf{}", b"[" * 9999, b'"\x01"']
)


@given(media=st.sampled_from([JSON, NDJSON]), data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_the_verdict_on_each_is_that_of_a_single_put(api: Api, user_id: int, media: str, data: Any) -> None:
    drawn = data.draw(st.lists(ITEMS | BROKEN_LINES if media == NDJSON else ITEMS, max_size=8))
    uids = [str(uuid.uuid4()) for _ in range(4)]  # nothing is known of them, whatever was drawn before
    names = {"good": user_id, "other": user_id + 1}
    items = [
        item if isinstance(item, bytes) else json.dumps({
            name: uids[value] if name == "uid" else names.get(str(value), value) for name, value in item.items()
        }).encode()
        for item in drawn
    ]  # fmt: skip
    found = results(api, items, media)
    for item, result in zip(items, found, strict=True):
        single = api.ask("PUT", "/api/transaction/", item)
        if result["status"] == "INVALID":
            assert single.status in (400, 404, 422), single
            assert (result["code"], result["detail"]) == (single.json["code"], single.json["detail"])
        else:
            assert single.status in (200, 202, 409), (single, result)
            assert single.headers["Idempotency-Replayed"] == "true"
            assert result["uid"] in uids
    wait_final(api, items, media)
    for item, result in zip(items, results(api, items, media), strict=True):
        single = api.ask("PUT", "/api/transaction/", item)
        expected = {200: "COMPLETED", 409: "REJECTED"}.get(single.status, "INVALID")
        told = single.json if expected != "COMPLETED" else {}
        assert (result["status"], result.get("code"), result.get("detail")) == (
            expected, told.get("code"), told.get("detail"),
        )  # fmt: skip


def lines_of(count: int, user_id: int) -> list[bytes]:
    return [json.dumps(transaction(user_id, amount="1")).encode() for _ in range(count)]


@pytest.mark.parametrize(
    ("frame", "media"),
    [
        (b"%b\n%b", NDJSON),
        (b"%b\n%b\n", NDJSON),
        (b"%b\r\n%b\r\n", NDJSON),
        (b"\n\r\n \t\n%b\n\n\n%b\n \n", NDJSON),
        (b" %b \n\t%b\t", "Application/X-NDJSON; charset=utf-8"),
        (b" [ %b ,\r\n %b ] ", "application/json; charset=utf-8"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_list_may_be_written_in_many_ways(api: Api, user_id: int, frame: bytes, media: str, chunked: bool) -> None:
    lines = lines_of(2, user_id)
    body = frame % (*lines,)
    answer = put(api, (body[i : i + 9] for i in range(0, len(body), 9)) if chunked else body, media)
    assert [result["uid"] for result in answer.json["results"]] == [json.loads(line)["uid"] for line in lines]
    assert {result["status"] for result in answer.json["results"]} <= {"PENDING", "COMPLETED"}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"amount": "0"}, "invalid_request"),
    ({"type": "TRANSFER"}, "invalid_request"),
    ({"user_id": NO_USER}, "user_not_found"),
    ({"timestamp": "2999-01-01"}, "invalid_request"),
    ({"user_id": NO_USER, "timestamp": "2999-01-01"}, "invalid_request"),
]


@pytest.mark.parametrize(("change", "code"), REFUSED)
def test_a_uid_that_was_refused_is_free_for_a_later_item(api: Api, change: dict[str, Any], code: str) -> None:
    good = transaction(api.add_user(), amount="1.00")
    single = api.put({**good, **change})
    items = [{**good, **change}, {**good, **change}, good, good, {**good, **change}, {**good, "amount": "2.00"}]
    found = results(api, items)
    assert [result["status"] == "INVALID" for result in found] == [True, True, False, False, True, True]
    for result in found[:2]:
        assert (result["code"], result["detail"]) == (code, single.json["detail"])
    again = api.put({**good, **change})
    assert (found[4]["code"], found[4]["detail"]) == (again.json["code"], again.json["detail"])
    assert found[5]["code"] == "uid_reused"
    assert api.wait_final(good["uid"])["amount"] == "1.00"


def test_concurrent_requests_with_one_uid_are_judged_alone(api: Api, service: Service) -> None:
    user_id = api.add_user()
    for _ in range(20):
        good = transaction(user_id, amount="1.00")
        bad = {**good, "user_id": NO_USER}
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(api.put, [bad, good] * 4))
        assert {answer.status for answer in answers[1::2]} <= {200, 202}
        assert {answer.json["code"] for answer in answers[::2]} <= {"user_not_found", "uid_reused"}


@pytest.mark.parametrize(("body", "media"), [(b"[]", JSON), (b" [ ] ", JSON), (b"", NDJSON), (b"\n \r\n", NDJSON)])
def test_an_empty_list_has_no_results(api: Api, body: bytes, media: str) -> None:
    answer = put(api, body, media)
    assert (answer.status, answer.json) == (202, {"results": []})


@pytest.mark.parametrize(
    ("body", "media", "refusal"),
    [
        (b"", JSON, (400, "not_json")),
        (b"x", JSON, (400, "not_json")),
        (b"[%b", JSON, (400, "not_json")),
        (b"[%b,]", JSON, (400, "not_json")),
        (b"[%b]x", JSON, (400, "not_json")),
        (b"[%b, x]", JSON, (400, "not_json")),
        (b"%b\n%b", JSON, (400, "not_json")),
        (b"%b", JSON, (422, "invalid_request")),
        (b'{"results": [%b]}', JSON, (422, "invalid_request")),
        (b"null", JSON, (422, "invalid_request")),
        (b"[%b]", "text/plain", (415, "unsupported_media_type")),
        (b"[%b]", "application/ndjson", (415, "unsupported_media_type")),
        (b"[%b]", "", (415, "unsupported_media_type")),
    ],
)
def test_what_is_no_list_is_refused_as_a_whole(
    api: Api, service: Service, body: bytes, media: str, refusal: tuple[int, str]
) -> None:
    (part,) = lines_of(1, api.add_user())
    before = count_rows(service.database_url)
    status, code = refusal
    put(api, body.replace(b"%b", part), media).refused(status, code, *[""] * (status == 422))
    assert count_rows(service.database_url) == before


@pytest.mark.parametrize("media", [JSON, NDJSON])
def test_10000_are_accepted_and_settled_and_one_more_is_none(api: Api, service: Service, media: str) -> None:
    lines = lines_of(MAX_LIST_ITEMS + 1, api.add_user())
    before = count_rows(service.database_url)[1]
    answer = put(api, written(lines, media), media).refused(413, "body_too_large")
    assert "10000" in answer.json["detail"]
    assert count_rows(service.database_url)[1] == before
    assert {result["status"] for result in results(api, lines[1:], media)} == {"PENDING"}
    assert count_rows(service.database_url)[1] == before + MAX_LIST_ITEMS
    assert set(wait_final(api, lines[1:])) == {"COMPLETED"}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("media", [JSON, NDJSON])
def test_4_mib_are_taken_and_a_byte_more_is_not(api: Api, service: Service, media: str, chunked: bool) -> None:
    def send(size: int) -> Response:
        body = written(lines_of(3, user_id), media).ljust(size)
        pieces = (body[start : start + 50_000] for start in range(0, size, 50_000))
        return put(api, pieces if chunked else body, media)

    user_id = api.add_user()
    before = count_rows(service.database_url)[1]
    assert str(MAX_LIST_BYTES) in send(MAX_LIST_BYTES + 1).refused(413, "body_too_large").json["detail"]
    assert count_rows(service.database_url)[1] == before
    assert send(MAX_LIST_BYTES).status == 202


def test_each_users_are_settled_in_the_order_sent(api: Api) -> None:
    """Each withdrawal takes all there is: one that came too early would be rejected."""
    users = [api.add_user() for _ in range(20)]
    items = [
        transaction(user, type=kind, amount=f"{round_}.07")
        for round_ in range(1, 41)
        for kind in ("DEPOSIT", "WITHDRAW")
        for user in users
    ]
    assert set(wait_final(api, items)) == {"COMPLETED"}
    assert {api.balance(user) for user in users} == {"0.00"}


def test_what_is_sent_after_a_list_is_settled_after_it(api: Api) -> None:
    for _ in range(20):
        user = api.add_user()
        results(api, [transaction(user, amount="5.00"), transaction(user, type="WITHDRAW", amount="5.00")] * 100)
        results(api, [transaction(user, amount="7.00")])
        assert api.deposit(user, "5.00", type="WITHDRAW").status == 200


def test_a_repeat_shows_the_present_state_also_within_a_list(api: Api, service: Service) -> None:
    user = api.add_user()
    first, poor = transaction(user, amount="1"), transaction(user, type="WITHDRAW", amount="9")
    other = {**first, "uid": first["uid"].upper(), "amount": 1.5}
    with held_lane(service.database_url, user):
        found = results(api, [first, poor, first, other])
        assert [r["status"] for r in found] == ["PENDING", "PENDING", "PENDING", "INVALID"]
        assert (found[3]["uid"], found[3]["code"]) == (first["uid"], "uid_reused")
    assert wait_final(api, [first, poor]) == ["COMPLETED", "REJECTED"]
    told = api.put(poor).json
    assert results(api, [poor]) == [
        {"uid": poor["uid"], "status": "REJECTED", "code": "insufficient_funds", "detail": told["detail"]}
    ]
    assert api.balance(user) == "1.00"


def test_a_list_sent_eight_times_at_once_is_accepted_once(api: Api) -> None:
    users = [api.add_user() for _ in range(5)]
    items = [transaction(user, amount="1.00") for _ in range(200) for user in users]
    with ThreadPoolExecutor(8) as threads:
        every = list(threads.map(lambda _: results(api, items), range(8)))
    assert {result["status"] for found in every for result in found} <= {"PENDING", "COMPLETED"}
    assert set(wait_final(api, items)) == {"COMPLETED"}
    assert {api.balance(user) for user in users} == {"200.00"}


def test_lists_and_single_requests_never_deadlock(api: Api, service: Service) -> None:
    user = api.add_user()
    with ThreadPoolExecutor(8) as threads:
        for _ in range(15):
            items = [transaction(user, amount="1.00") for _ in range(300)]
            orders = [items, items[::-1], items[150:] + items[:150], items[::2] + items[1::2]]
            every = list(threads.map(lambda order: results(api, order), orders * 2))
            assert {result["status"] for found in every for result in found} <= {"PENDING", "COMPLETED"}
    assert set(wait_final(api, items)) == {"COMPLETED"}
    assert api.balance(user) == "4500.00"
    assert not [line for line in service.lines() if "deadlock" in line]


def test_list_rows_have_the_request_id_and_ring_their_lanes(api: Api, service: Service) -> None:
    request_id = uuid.uuid4().hex
    items = [transaction(api.add_user(), amount="1") for _ in range(2)]
    put(api, items, **{"X-Request-ID": request_id})
    uids = [item["uid"] for item in items]
    stored = query(service.database_url, "SELECT request_id FROM transactions WHERE uid = ANY(%s::uuid[])", uids)
    assert stored == [(request_id,)] * 2

    def settled_by_ring() -> set[str]:
        lines = [line for line in service.log_lines() if line["process"] == "worker" and line["event"] == "settled"]
        return {uid for line in lines if line.get("rang") in uids for uid, *_ in line["transactions"]}

    wait_until(lambda: settled_by_ring() >= set(uids), "both lanes were settled for a ring")


@pytest.fixture
def limited(start_service: Callable[..., Service]) -> Service:
    return start_service(PAYMENTS_BACKLOG_LIMIT="5")


def test_over_the_backlog_limit_a_list_is_refused_as_a_whole(limited: Service) -> None:
    api = Api(limited.url)
    user = api.add_user()
    known = [transaction(user, amount="1") for _ in range(6)]
    with held_lane(limited.database_url, user):
        results(api, known)
        wait_until(lambda: put(api, known).status == 429, "the limit is noticed")
        before = count_rows(limited.database_url)
        for items in ([transaction(user)], known, [5, *known], [known[0], transaction(user)]):
            answer = put(api, items).refused(429, "backlog_full")
            assert int(answer.headers["Retry-After"]) >= 1
        assert count_rows(limited.database_url) == before
        assert results(api, [5])[0]["status"] == "INVALID"  # it brings nothing in
    wait_until(lambda: put(api, known).status == 202, "there is room again")
    assert wait_final(api, known) == ["COMPLETED"] * 6


def assert_unavailable_in_time(api: Api, items: list[Any]) -> None:
    began = time.monotonic()
    answer = api.ask("PUT", "/api/transactions/", items, expected=503)
    assert time.monotonic() - began < 20, "the database never answers"
    assert answer.json["code"] in ("database_unavailable", "overloaded")
    assert int(answer.headers["Retry-After"]) >= 1


@contextmanager
def no_insert(database_url: str) -> Iterator[None]:
    """Rows can be read and counted, but none comes in."""
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE transactions IN EXCLUSIVE MODE")
        yield


def test_a_list_is_503_while_nothing_can_be_stored(api: Api, service: Service) -> None:
    user = api.add_user()
    items = [transaction(user, amount="1") for _ in range(10)]
    with no_insert(service.database_url), ThreadPoolExecutor(8) as threads:
        for told in [threads.submit(assert_unavailable_in_time, api, items) for _ in range(8)]:
            told.result()
    assert set(wait_final(api, items)) == {"COMPLETED"}
    assert api.balance(user) == "10.00"


def test_a_list_is_503_in_time_while_the_database_hangs(
    start_service: Callable[..., Service],
) -> None:
    service = start_service()
    api = Api(service.url)
    user = api.add_user()
    results(api, [transaction(user)])
    items = [transaction(user, amount="1") for _ in range(10)]
    stopped = family(service.pid_of("postgres"))
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(2):
            assert_unavailable_in_time(api, items)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    wait_until(service.answers, "ready again")
    wait_until(lambda: put_or_503(api, items) == 202, "lists are accepted again")
    assert set(wait_final(api, items)) == {"COMPLETED"}
    assert api.balance(user) == "110.00"


def put_or_503(api: Api, items: list[Any]) -> int:
    try:
        return put(api, items).status
    except AssertionError:
        return 503


def test_lists_that_never_come_keep_nobody_else_waiting(api: Api, service: Service, user_id: int) -> None:
    parts = urlsplit(service.url)
    head = f"PUT /api/transactions/ HTTP/1.1\r\nHost: x\r\nContent-Type: {NDJSON}\r\nContent-Length: 999\r\n\r\n{{"
    with ExitStack() as open_:

        def begin_lists(count: int) -> None:
            for _ in range(count):
                connection = open_.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=30))
                connection.sendall(head.encode())

        begin_lists(MAX_LISTS - 1)
        assert put(api, []).status == 202
        begin_lists(1)
        wait_until(lambda: put_or_503(api, []) == 503, "there is no room for lists")
        begin_lists(200)
        answer = api.ask("PUT", "/api/transactions/", [], expected=503)
        assert answer.json["code"] == "overloaded"
        for _ in range(20):
            assert api.put(transaction(user_id)).status in (200, 202)  # the lists stay unfinished all the while
    wait_until(lambda: put_or_503(api, []) == 202, "lists are taken again")


def test_a_list_that_ends_before_its_content_length_is_refused(service: Service, user_id: int) -> None:
    before = count_rows(service.database_url)
    parts = urlsplit(service.url)
    for media, body in ((JSON, written(lines_of(2, user_id))), (NDJSON, written(lines_of(2, user_id), NDJSON) + b"\n")):
        head = f"PUT /api/transactions/ HTTP/1.1\r\nHost: x\r\nContent-Type: {media}\r\nContent-Length: 9999\r\n\r\n"
        with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
            connection.sendall(head.encode() + body)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert count_rows(service.database_url) == before


def test_items_are_accepted_when_the_list_began_to_arrive(api: Api, service: Service, user_id: int) -> None:
    """So that however long it is on its way and waits, a client's "now" does not become the past."""
    item = transaction(user_id)
    ((began,),) = query(service.database_url, "SELECT clock_timestamp()")

    def slowly() -> Iterator[bytes]:
        yield b"\n"
        wait_until(lambda: query(service.database_url, "SELECT clock_timestamp()")[0][0] > began + later, "a while")
        yield json.dumps(item).encode()

    later = timedelta(seconds=5)
    assert put(api, slowly(), NDJSON).json["results"][0]["uid"] == item["uid"]
    ((accepted,),) = query(service.database_url, "SELECT accepted_at FROM transactions WHERE uid = %s", item["uid"])
    assert timedelta(seconds=-0.1) < accepted - began < later
