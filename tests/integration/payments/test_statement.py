"""The statement: pages by key, newest accepted first, nothing twice and nothing left out."""

import csv
import io
from datetime import timedelta
from uuid import UUID

import pytest
from flask import Response
from flask.testing import FlaskClient
from sqlalchemy import text

from shared.database import transaction
from shared.payments.model import StatementFilter, Status, Transaction, Type
from shared.payments.queries import statement
from shared.payments.reads import get_statement
from tests.integration.factories import accepted, deposit, new_user, settled, stored, withdrawal
from web.app import create_app
from web.limits import concurrency
from web.views import users
from web.views.statement_csv import _streams

pytestmark = pytest.mark.integration


def all_pages(user_id: int, limit: int, wanted: StatementFilter = StatementFilter()) -> list[Transaction]:  # noqa: B008 - a value
    items, after = [], None
    while True:
        page = get_statement(user_id, wanted, after, limit)
        items += page.items
        if page.after is None:
            return items
        after = page.after


def test_pages_of_any_size_make_the_whole_statement() -> None:
    user = new_user()
    rows = [deposit(user, number + 1) for number in range(10)]
    accepted(*rows[:4])  # of one list: accepted at the same instant
    for row in rows[4:]:
        accepted(row)
    newest_first = [row.uid for row in reversed(rows)]
    for limit in (1, 2, 3, 5, 9, 10, 11):
        assert [item.uid for item in all_pages(user, limit)] == newest_first


def test_new_rows_do_not_change_the_next_page() -> None:
    user = new_user()
    rows = [deposit(user, number + 1) for number in range(4)]
    accepted(*rows)
    first = get_statement(user, StatementFilter(), None, 2)
    accepted(deposit(user, 9))
    second = get_statement(user, StatementFilter(), first.after, 2)
    assert [item.uid for item in first.items + second.items] == [row.uid for row in reversed(rows)]


def test_a_statement_is_narrowed_by_status_type_and_time() -> None:
    user = new_user()
    rows = [deposit(user, 5), withdrawal(user, 3), withdrawal(user, 9)]
    for row in rows:
        settled(row)
    settled_rows = stored(*rows)
    accepted(pending := deposit(user, 1))

    def uids(**wanted: object) -> list[UUID]:
        return [item.uid for item in all_pages(user, 2, StatementFilter(**wanted))][::-1]  # type: ignore[arg-type]

    assert uids(status=Status.COMPLETED) == [rows[0].uid, rows[1].uid]
    assert uids(status=Status.REJECTED) == [rows[2].uid]
    assert uids(status=Status.PENDING) == [pending.uid]
    assert uids(type=Type.WITHDRAW, status=Status.COMPLETED) == [rows[1].uid]
    first, second, third = (row.accepted_at for row in settled_rows)
    assert uids(since=second, until=third) == [rows[1].uid], "half-open"
    assert uids(until=first) == []
    assert uids(since=third + timedelta(microseconds=1)) == [pending.uid]


def test_a_filtered_page_reads_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a page may hold fewer items than asked for, or none, and still be followed by another."""
    monkeypatch.setattr(statement, "MAX_SCANNED_ROWS", 4)
    user = new_user()
    rows = [withdrawal(user, 9), *[deposit(user, 1) for _ in range(9)], withdrawal(user, 99)]
    for row in rows:
        settled(row)
    wanted, after, pages = StatementFilter(status=Status.REJECTED), None, []
    while not pages or after:
        page = get_statement(user, wanted, after, 2)
        after = page.after
        pages.append([item.uid for item in page.items])
    assert pages == [[rows[-1].uid], [], [rows[0].uid]]


def test_a_statement_is_of_one_user() -> None:
    one, other = new_user(), new_user()
    settled(deposit(one, 5), deposit(other, 6))
    assert [item.amount for item in all_pages(one, 10)] == [5]


def open_csv(client: FlaskClient, user_id: int) -> Response:
    """The answer, of which nothing is read yet but the head."""
    return client.get(f"/api/user/{user_id}/transactions/", headers={"Accept": "text/csv"}, buffered=False)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    monkeypatch.setattr(users, "MAX_PAGE_ITEMS", 4)
    return create_app().test_client()


def test_a_stream_holds_its_place_until_it_is_closed(client: FlaskClient) -> None:
    user, before = new_user(), concurrency._requests_inside
    settled(*[deposit(user, 1) for _ in range(9)])
    places = _streams()._value
    opened = [open_csv(client, user) for _ in range(places)]
    assert {answer.status_code for answer in opened} == {200}
    assert concurrency._requests_inside == before + places
    refused = open_csv(client, user)
    assert (refused.status_code, refused.json["code"]) == (503, "overloaded")
    assert client.get(f"/api/user/{user}/transactions/").status_code == 200
    assert len(opened[0].data.splitlines()) == 1 + 9
    for answer in opened:
        answer.close()
    assert (concurrency._requests_inside, _streams()._value) == (before, places)
    assert open_csv(client, 0).status_code == 404
    head = client.head(f"/api/user/{user}/transactions/", headers={"Accept": "text/csv"})
    head.close()
    assert (concurrency._requests_inside, _streams()._value) == (before, places)


def test_a_failed_stream_ends_as_invalid_csv(client: FlaskClient) -> None:
    user = new_user()
    settled(*[deposit(user, 1) for _ in range(9)])
    answer = open_csv(client, user)
    pieces = iter(answer.response)
    begun = next(pieces)
    rename = "ALTER TABLE {} RENAME TO {}"
    with transaction() as connection:
        connection.execute(text(rename.format("ledger", "ledger_away")))
    try:
        received = b"".join([begun, *pieces]).decode()
    finally:
        with transaction() as connection:
            connection.execute(text(rename.format("ledger_away", "ledger")))
        answer.close()
    assert received.count("DEPOSIT") == 4
    with pytest.raises(csv.Error, match="unexpected end of data"):
        list(csv.reader(io.StringIO(received), strict=True))
