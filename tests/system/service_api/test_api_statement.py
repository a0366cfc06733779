"""API.md, the statement: pages, filters and CSV against the running service."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kit.database import held_lane, query
from tests.kit.http import Api, Response, transaction
from tests.kit.service import Service
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.system


@pytest.fixture
def one(api: Api) -> int:
    """A user with one transaction."""
    user_id = api.add_user()
    api.put(transaction(user_id))
    return user_id


@pytest.fixture(scope="module")
def busy(api: Api, service: Service) -> Iterator[tuple[int, list[str]]]:
    """A user with 25 transactions, and their uids in the order of acceptance; the last two are PENDING."""
    user_id = api.add_user()
    sent = [transaction(user_id, amount="1.00") for _ in range(20)]
    sent += [transaction(user_id, amount="1000000", type="WITHDRAW") for _ in range(3)]
    for content in sent:
        assert api.put(content).status in (200, 202, 409)
    api.wait_final(sent[-1]["uid"])
    with held_lane(service.database_url, user_id):
        last = [transaction(user_id), transaction(user_id, type="WITHDRAW")]
        assert [api.put(content).status for content in last] == [202, 202]
        yield user_id, [content["uid"] for content in [*sent, *last]]


def pages(api: Api, user_id: int, rest: str, most: int = 100) -> Iterator[list[dict[str, Any]]]:
    cursor = ""
    for _ in range(most):
        page = api.ask("GET", f"/api/user/{user_id}/transactions/?cursor={cursor}{rest}").json
        assert list(page) == ["items", "next"]
        yield page["items"]
        cursor = page["next"]
        if cursor is None:
            return
    raise AssertionError("the pages do not end")


def uids(items: list[dict[str, Any]]) -> list[str]:
    return [item["uid"] for item in items]


@pytest.mark.parametrize("limit", [1, 4, 5, 24, 25, 26, 1000])
def test_pages_cover_the_statement_exactly_once_newest_first(api: Api, busy: tuple[int, list[str]], limit: int) -> None:
    user_id, sent = busy
    got = list(pages(api, user_id, f"&limit={limit}"))
    assert [uid for page in got for uid in uids(page)] == sent[::-1]
    assert all(len(page) == limit for page in got[:-1])
    assert 0 < len(got[-1]) <= limit


def test_an_item_is_the_transaction(api: Api, busy: tuple[int, list[str]]) -> None:
    items = api.ask("GET", f"/api/user/{busy[0]}/transactions").json["items"]
    for item in (items[0], items[2], items[-1]):
        assert item == api.look_up(item["uid"]).json


@pytest.mark.parametrize(
    ("query_", "count"),
    [
        ("status=PENDING", 2),
        ("status=COMPLETED", 20),
        ("status=REJECTED", 3),
        ("type=DEPOSIT", 21),
        ("type=WITHDRAW&status=REJECTED", 3),
        ("type=WITHDRAW&status=COMPLETED", 0),
    ],
)
def test_the_statement_is_narrowed_by_status_and_type(
    api: Api, busy: tuple[int, list[str]], query_: str, count: int
) -> None:
    asked = dict(pair.split("=") for pair in query_.split("&"))
    items = [item for page in pages(api, busy[0], f"&limit=7&{query_}") for item in page]
    assert len(items) == count
    assert all(item[name] == value for item in items for name, value in asked.items())


def test_from_and_to_are_half_open_on_acceptance(api: Api, busy: tuple[int, list[str]]) -> None:
    user_id, sent = busy
    items = api.ask("GET", f"/api/user/{user_id}/transactions/").json["items"][::-1]
    start, end = items[5]["accepted_at"], items[15]["accepted_at"]
    expected = [uid for uid, item in zip(sent, items, strict=True) if start <= item["accepted_at"] < end]
    got = api.ask("GET", f"/api/user/{user_id}/transactions/?from={start}&to={end}").json["items"]
    assert uids(got) == expected[::-1]
    assert sent[5] in expected
    assert sent[15] not in expected
    assert api.ask("GET", f"/api/user/{user_id}/transactions/?from={end}&to={start}").json["items"] == []


@pytest.mark.parametrize(
    "query_",
    [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.0",
        "limit=%EF%BC%91",
        "cursor=x",
        "cursor=1-",
        "cursor=%00",
        "cursor=1-1-1",
        "status=pending",
        "status=",
        "type=PAYMENT",
        "from=x",
        "to=2023-02-30",
        "offset=1",
    ],
)
def test_an_unreadable_filter_is_refused(api: Api, one: int, query_: str) -> None:
    field = query_.partition("=")[0]
    api.ask("GET", f"/api/user/{one}/transactions/?{query_}").refused(422, "invalid_request", field)


def test_pages_lose_and_repeat_nothing_while_new_ones_come(api: Api) -> None:
    user_id = api.add_user()
    before = [transaction(user_id, amount="1") for _ in range(30)]
    for content in before:
        api.put(content)
    seen: list[str] = []
    for page in pages(api, user_id, "&limit=4"):
        seen += uids(page)
        api.put(transaction(user_id, amount="1"))
    assert seen == [content["uid"] for content in before][::-1]


def test_a_page_has_100_items_unless_asked_otherwise(api: Api) -> None:
    user_id = api.add_user()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(api.put, (transaction(user_id, amount="1") for _ in range(101))))
    assert [len(page) for page in pages(api, user_id, "")] == [100, 1]


def csv_of(api: Api, path: str) -> tuple[Response, list[str]]:
    answer = api.ask("GET", path, headers={"Accept": "text/csv"})
    assert (answer.status, answer.media) == (200, "text/csv"), answer
    return answer, answer.body.decode().removesuffix("\r\n").split("\r\n")


def test_as_csv_the_statement_is_the_same_and_next_is_a_link(api: Api, busy: tuple[int, list[str]]) -> None:
    user_id, sent = busy
    columns = list(api.look_up(sent[0]).json)
    path: str | None = f"/api/user/{user_id}/transactions/?limit=10&status=COMPLETED"
    rows: list[str] = []
    while path:
        answer, lines = csv_of(api, path)
        assert lines[0].split(",") == columns
        rows += lines[1:]
        link = answer.headers.get("Link")
        path = link and link.removeprefix("<").removesuffix('>; rel="next"')
    listed = [item for page in pages(api, user_id, "&status=COMPLETED") for item in page]
    as_text = [",".join("" if value is None else str(value) for value in item.values()) for item in listed]
    assert rows == as_text
    assert len(rows) == 20
    assert all(cell[:1].isalnum() or not cell for row in rows for cell in row.split(",")), "nothing a spreadsheet runs"


@pytest.fixture(scope="module")
def long(api: Api) -> int:
    """A user with 11,000 transactions, all final."""
    user_id = api.add_user()
    for _ in range(2):
        items = [transaction(user_id, amount="1.00") for _ in range(5500)]
        assert api.ask("PUT", "/api/transactions/", items).status == 202
    pending = f"/api/user/{user_id}/transactions/?status=PENDING"
    wait_until(lambda: not api.ask("GET", pending).json["items"], "all are settled", 60)
    return user_id


@pytest.mark.parametrize("filter_", ["", "status=COMPLETED&type=DEPOSIT", "status=REJECTED", "from=2020-01-01"])
def test_without_a_limit_a_csv_has_all_rows_of_the_filter(api: Api, long: int, filter_: str) -> None:
    answer, lines = csv_of(api, f"/api/user/{long}/transactions/?{filter_}")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="transactions-{long}.csv"'
    assert "Link" not in answer.headers
    listed = [item for page in pages(api, long, f"&limit=1000&{filter_}") for item in page]
    assert len(listed) == (0 if "REJECTED" in filter_ else 11_000)
    assert lines[1:] == [",".join("" if value is None else str(value) for value in item.values()) for item in listed]
    head = api.ask("HEAD", f"/api/user/{long}/transactions/?{filter_}", headers={"Accept": "text/csv"})
    assert (head.status, head.body, head.headers.get("Content-Length")) == (200, b"", None)


def test_a_csv_without_a_limit_goes_on_from_a_cursor(api: Api, long: int) -> None:
    first = api.ask("GET", f"/api/user/{long}/transactions/?limit=10").json
    _, lines = csv_of(api, f"/api/user/{long}/transactions/?cursor={first['next']}")
    assert len(lines) - 1 == 11_000 - 10
    api.ask("GET", "/api/user/0/transactions/", headers={"Accept": "text/csv"}).refused(404, "user_not_found")


ROWS = 60_000  # more than the buffers between the service and a client that does not read take
MANY = f"""
    INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at)
    SELECT gen_random_uuid(), %s, 'DEPOSIT', 1, nextval('transactions_accept_order_seq'), clock_timestamp()
    FROM generate_series(1, {ROWS}) RETURNING 1
"""


@contextmanager
def unread(service: Service, path: str) -> Iterator[socket.socket]:
    """A connection on which a CSV comes that nobody reads, past its head."""
    parts = urlsplit(service.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect((parts.hostname, parts.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/csv\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        yield connection


def rest_of(connection: socket.socket) -> bytes:
    """What is left of the answer, without the sizes of its chunks but that of the last one."""
    received = b""
    while piece := connection.recv(1 << 20):
        received += piece
    return re.sub(rb"\r\n[0-9A-Fa-f]+\r\n(?!\r\n)", b"", received)


def sessions_at_work(service: Service) -> list[tuple[Any, ...]]:
    statement = "SELECT state, query FROM pg_stat_activity WHERE application_name = 'payments-web' AND state <> 'idle' "
    statement += "AND query LIKE '%%FROM transactions t WHERE%%'"
    return query(service.database_url, statement)


@pytest.mark.timeout(300)
def test_a_slow_csv_reader_holds_no_database_connection(
    start_service: Callable[..., Service],
) -> None:
    service = start_service()
    api = Api(service.url)
    user_id = api.add_user()
    path = f"/api/user/{user_id}/transactions/"
    with held_lane(service.database_url, user_id), ExitStack() as readers:
        query(service.database_url, MANY, user_id)
        first, second = [readers.enter_context(unread(service, path)) for _ in range(2)]
        idle = 0
        while idle < 20:  # in a row: none is between two pages
            idle = 0 if sessions_at_work(service) else idle + 1
        query(service.database_url, "ALTER TABLE ledger RENAME TO ledger_away; SELECT 1")
        try:
            broken = rest_of(first)
        finally:
            query(service.database_url, "ALTER TABLE ledger_away RENAME TO ledger; SELECT 1")
        assert 0 < broken.count(b"DEPOSIT") < ROWS
        assert broken.endswith(b"ask again\r\n0\r\n\r\n")
        whole = rest_of(second)
        assert whole.count(b"DEPOSIT") == ROWS
        assert whole.endswith(b"\r\n\r\n0\r\n\r\n")


def test_json_is_what_a_browser_and_a_client_without_wishes_get(api: Api, one: int) -> None:
    for accept in ("*/*", "text/html,application/xml;q=0.9,*/*;q=0.8", "application/json", "nonsense", "image/png"):
        answer = api.ask("GET", f"/api/user/{one}/transactions/", headers={"Accept": accept})
        assert (answer.status, answer.media) == (200, "application/json")
        assert len(json.loads(answer.body)["items"]) == 1


def test_the_balance_of_a_user_is_that_of_the_books(api: Api, service: Service, busy: tuple[int, list[str]]) -> None:
    stored = query(service.database_url, "SELECT balance, (SELECT sum(amount) FROM ledger WHERE user_id = users.id) "
                   "FROM users WHERE id = %s", busy[0])  # fmt: skip
    assert stored == [(2000, 2000)]
    assert api.balance(busy[0]) == "20.00"
