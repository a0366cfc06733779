"""Each statement that runs again and again reads a bounded number of pages, however much is stored and however skewed.

Measured as Postgres counts it, EXPLAIN (ANALYZE, BUFFERS), on the very statements that the code sends, with millions of rows
that the statistics know and that they do not know yet. No time is measured.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from sqlalchemy import Connection, TextClause
from sqlalchemy.dialects.postgresql import psycopg2

import shared
from shared import database, server
from shared.auth import queries
from shared.payments.model import LANES, StatementFilter, Status
from shared.payments.queries import events, lanes, ledger, parked, statement, transactions, users, verification_results
from shared.payments.rules import fold
from shared.webhooks.model import DeadLetterKey, NewWebhook
from shared.webhooks.policy import Retry
from shared.webhooks.queries import attempts, dead_letters, outbox, retention, webhooks
from shared.webhooks.queries.outbox import LaggingCursor, NewDelivery, WebhookCursor
from tests.integration import skewed_books as books
from tests.integration.conftest import empty_database, forget_settings, migrate
from tests.integration.factories import deposit, plain_engine, recorded_statements

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]  # making the rows takes a minute, a slow machine more

OLD, YOUNG = 1.0, 1e9  # seconds that make all events old, or all of them young
PAGE = 600
QUIET_HOOK = 4


class Case(NamedTuple):
    """A call of the code, and how many pages each of its statements may read."""

    call: Callable[[Connection], object]
    pages: int


def of_hooks(count: int) -> list[LaggingCursor]:
    """The cursors of so many webhooks."""
    return [LaggingCursor(hook, lane, [], 0) for hook in range(1, count + 1) for lane in range(LANES)]


def read_events(
    connection: Connection, cursors: list[WebhookCursor], limit: int
) -> list[tuple[int, outbox.OutboxEvent]]:
    return outbox.read_events(connection, cursors, limit)


def at_the_end(connection: Connection) -> list[WebhookCursor]:
    """The cursors of a webhook that is through with all events: in some lanes there were none."""
    return outbox.lock_cursors(connection, [LaggingCursor(QUIET_HOOK, lane, [], 0) for lane in range(LANES)])


def of_one_lane(connection: Connection, hook: int, lane: int) -> list[WebhookCursor]:
    return outbox.lock_cursors(connection, [LaggingCursor(hook, lane, [], 0)])


def expand_backlog(connection: Connection) -> None:
    """A page of the lane of the user who has most events."""
    found = read_events(connection, of_one_lane(connection, books.BEHIND_HOOK, books.BUSY % LANES), PAGE)
    assert len(found) == PAGE
    outbox.insert_deliveries(connection, [NewDelivery(hook, e.id, 0, e.type) for hook, e in found])
    outbox.advance(connection, [WebhookCursor(books.BEHIND_HOOK, books.BUSY % LANES, found[-1][1].id)])
    outbox.give_turns(connection, {(books.BEHIND_HOOK, books.BUSY)})


def expand_many_users(connection: Connection) -> None:
    """As many users as a page can have, each with a line of its own."""
    found = read_events(connection, of_one_lane(connection, books.BEHIND_HOOK, books.FIRST_OF_MANY), PAGE)
    assert len({e.user_id for _, e in found}) == PAGE
    outbox.insert_deliveries(connection, [NewDelivery(hook, e.id, 0, e.type) for hook, e in found])
    outbox.advance(connection, [WebhookCursor(books.BEHIND_HOOK, books.FIRST_OF_MANY, found[-1][1].id)])
    outbox.give_turns(connection, {(hook, e.user_id) for hook, e in found})


def deliver(connection: Connection) -> None:
    for hook in (books.BUSY_HOOK, books.CROWDED_HOOK):
        assert attempts.lock_webhook(connection, hook) is False
        claimed = attempts.claim(connection, hook, 8, 60)
        assert claimed
        assert attempts.retry(connection, claimed, "status 500", Retry(1), 60)
        claimed = attempts.claim(connection, books.CROWDED_HOOK, 8, 60)
        assert claimed
        assert attempts.finish(connection, claimed, None)
        attempts.note_failure(connection, hook, 1.0)
        attempts.note_success(connection, hook)
    assert attempts.claim(connection, QUIET_HOOK, 8, 60) is None


def accept(connection: Connection) -> None:
    known, new = UUID(int=books.EVENTS_OF_BUSY), deposit(books.BUSY, 1)
    transactions.insert_pending(connection, [new, deposit(books.BUSY, 1, uid=known)])
    transactions.find_transactions(connection, [new.uid, known])
    transactions.find_final(connection, [new.uid, known])


def delete_events(connection: Connection) -> None:
    assert retention.delete_events(connection, OLD, 200) > 200


MIDDLE = datetime(2025, 1, 15, tzinfo=UTC)
CASES = {
    "expand: find behind": Case(lambda c: outbox.find_lagging_cursors(c, [29], 600), 200),
    "expand: lock": Case(lambda c: outbox.lock_cursors(c, of_hooks(30)), 4000),
    "expand: read, nothing new": Case(lambda c: read_events(c, at_the_end(c), PAGE), 150),
    "expand: read, a long backlog": Case(lambda c: read_events(c, of_one_lane(c, 3, 1), PAGE), 200),
    "expand: one user": Case(expand_backlog, 25_000),
    "expand: many users": Case(expand_many_users, 35_000),
    "deliver: due": Case(lambda c: attempts.find_due(c, 8), 600),
    "deliver: claim and record": Case(deliver, 150),
    "retention: events, all young": Case(lambda c: retention.delete_events(c, YOUNG, 200), 1500),
    "retention: events, all old": Case(delete_events, 4000),
    "retention: delivered, all young": Case(lambda c: retention.delete_delivered(c, YOUNG, 500), 50),
    "retention: delivered, all old": Case(lambda c: retention.delete_delivered(c, OLD, 500), 2500),
    "retention: secrets": Case(lambda c: webhooks.delete_expired_secrets(c, 500), 50),
    "retention: deleted webhooks": Case(lambda c: retention.delete_deleted(c, 500), 2500),
    "gauges: webhooks": Case(dead_letters.read_webhook_backlog, 7000),
    "gauges: snapshot": Case(server.read_oldest_snapshot, 50),
    "gauges: verification": Case(verification_results.find_verification, 50),
    "dead letters": Case(
        lambda c: dead_letters.read_dead_letters(c, 1, DeadLetterKey(books.DELIVERED + 9, 0), 100), 150
    ),
    "parked: due heads": Case(lambda c: parked.find_due_heads(c, 0, 100), 1500),
    "parked: due heads, later": Case(lambda c: parked.find_due_heads(c, 20_000, 100), 1500),
    "feed: all users": Case(lambda c: events.read_events(c, [0] * LANES, 100), 4000),
    "feed: all users, at the end": Case(lambda c: events.read_events(c, [2**62] * LANES, 100), 150),
    "feed: is a cursor ahead": Case(lambda c: events.is_ahead(c, [0] * LANES), 10),
    "feed: a user's last event": Case(lambda c: users.find_last_event_seq(c, books.BUSY), 10),
    "feed: one user": Case(lambda c: events.read_events_of_user(c, books.BUSY, 1_200_000, 100), 1500),
    "feed: where one user was": Case(lambda c: events.find_seq(c, books.BUSY, 800_000), 200),
    "statement": Case(lambda c: statement.read_statement(c, books.BUSY, StatementFilter(), None, 100), 900),
    "statement, a rare status": Case(
        lambda c: statement.read_statement(c, books.BUSY, StatementFilter(status=Status.REJECTED), None, 100), 12_000
    ),
    "statement, where it ends": Case(lambda c: statement.find_scan_end(c, books.BUSY, StatementFilter(), None), 12_000),
    # Of entries that the statistics do not know of yet the planner reads an index, too: 4 pages for 1,000.
    "balance at an instant": Case(lambda c: ledger.get_balance_at(c, books.BUSY, MIDDLE), 600),
    "accept": Case(accept, 100),
    "user": Case(lambda c: users.find_user(c, books.BUSY), 10),
    "users locked": Case(lambda c: users.lock_accounts(c, range(1, 501)), 2500),
    "keys": Case(queries.read_valid, 100),
    "server": Case(lambda c: (server.read_state(c), server.read_clock(c)), 50),
    "a new webhook": Case(
        lambda c: webhooks.insert_webhook(c, NewWebhook("http://x/", ["a"], 0), "", None, LANES), 300
    ),
}


def settle(connection: Connection) -> None:
    rows = [row.pending for row in lanes.read_pending(connection, [books.LANE_OF_PENDING], 100)]
    accounts, moment = users.lock_accounts(connection, {row.user_id for row in rows})
    outcomes, after = fold(rows, accounts, {}, moment)
    assert len(outcomes) == 2 * 100, "single requests and lists"
    ledger.write(connection, outcomes, after.values(), moment)


def park_and_release(connection: Connection) -> None:
    row, *_ = lanes.read_pending(connection, [books.LANE_OF_PENDING], 1)
    parked.park(connection, [row.pending.uid], "why", failed=True)
    parked.release(connection, row.pending.user_id, row.accept_order, 100)


# The settle path: lanes that are tried, read and found overdue once a second or at every batch.
CASES |= {
    "lanes: locks": Case(lambda c: (lanes.try_lock_lanes(c, range(LANES)), lanes.lock_lane(c, 1)), 10),
    "lanes: next rows": Case(lambda c: lanes.read_pending(c, range(LANES), 500), 12_000),
    "lanes: work": Case(lanes.find_work, 250),
    "lanes: users": Case(lambda c: lanes.read_users(c, books.LANE_OF_PENDING, 0, 200), 1000),
    "lanes: rows of a user": Case(lambda c: lanes.read_pending_of_user(c, books.LANE_OF_PENDING, 500), 12_000),
    "lanes: rows of another user": Case(lambda c: lanes.read_pending_of_user(c, books.USER_BEHIND, 500), 50),
    "lanes: overdue": Case(lambda c: lanes.find_overdue_lanes(c, LANES, 1), 150),
    "settle": Case(settle, 6000),
    "park and release": Case(park_and_release, 150),
}
# What reads more with each row of one user, of a lane or of the backlog. Whoever bounds one of these moves it up.
UNBOUNDED = {
    "lanes: backlog": Case(lambda c: lanes.read_backlog(c, LANES), 3000),
}
BY_HAND = "one look-up or a few rows, for a command or a request about one webhook or key"
SQL_OF_THE_BASE = ("shared.server", "shared.operator_actions")
NOT_REPEATED = {
    "guards._TRIGGERS": "the catalogue",
    "guards._CONSTRAINTS": "the catalogue",
    "auth._INSERT": BY_HAND,
    "auth._LIST": BY_HAND,
    "auth._REVOKE": BY_HAND,
    "ledger._SCAN_LOWEST_BALANCES": "reads a user's entries from an instant on, within a time-out and a limit of its own",
    "operator_actions._INSERT": BY_HAND,
    "operator_actions._NEWEST": BY_HAND,
    "parked._COUNT_ERRORS": BY_HAND,
    "parked._FIND_PARKED": BY_HAND,
    "parked._FIND_USERS": BY_HAND,
    "parked._RELEASE_USERS": BY_HAND,
    "parked._LIST_PARKED": BY_HAND,
    "server._STATE_WITHOUT": "before the first migration",
    "story._STORY": BY_HAND,
    "users._FIND_BY_KEY": BY_HAND,
    "users._INSERT": BY_HAND,
    "users._INSERT_WITH_KEY": BY_HAND,
    "verification_results._INSERT_VERIFICATION": BY_HAND,
    "webhooks._COUNT_OLDER": BY_HAND,
    "webhooks._DELETE": BY_HAND,
    "webhooks._DELETE_SECRETS": BY_HAND,
    "webhooks._DISABLE": BY_HAND,
    "webhooks._ENABLE": BY_HAND,
    "webhooks._FIND": BY_HAND,
    "webhooks._FIND_BY_KEY": BY_HAND,
    "webhooks._KEEP_SECRETS": BY_HAND,
    "webhooks._LIST": BY_HAND,
    "webhooks._LOCK": BY_HAND,
    "webhooks._LOCK_CURSORS": BY_HAND,
    "webhooks._REWIND": BY_HAND,
    "webhooks._ROTATE": BY_HAND,
    "webhooks._SECRETS": BY_HAND,
    "webhooks._TAKE_TURNS_BACK": "takes the turns of a replayed webhook's users back, within a time-out of its own",
}


@pytest.fixture(scope="module")
def skewed(server_url: str, database_url: str) -> Iterator[None]:
    """The code under test finds this database, by the environment as ever, instead of the one that all tests share."""
    with pytest.MonkeyPatch.context() as patch, empty_database(server_url) as url:
        migrate(url)
        patch.setenv("DATABASE_URL", url)
        database.engine().dispose()
        forget_settings()
        with plain_engine().connect() as connection:
            books.load(connection)
        yield
        database.engine().dispose()
    forget_settings()


@pytest.fixture(scope="module", params=["stale", "fresh"])
def statistics(request: pytest.FixtureRequest) -> str:
    """What the planner knows: the few rows of the beginning, or all."""
    request.getfixturevalue("skewed")
    if request.param == "fresh":
        with plain_engine().connect() as connection:
            connection.exec_driver_sql("ANALYZE")
    return str(request.param)


@pytest.fixture
def the_books_balance() -> None:
    """Instead of the check after each test: these are no books that balance."""


def costs(call: Callable[[Connection], object]) -> list[tuple[int, str]]:
    """Of each statement that the call sends: the pages that it read, and its text with its plan. Nothing is kept."""
    found = []
    with database.engine().connect() as connection:
        database.set_statement_timeout(connection, 25)
        trial = connection.begin_nested()
        with recorded_statements() as sent:
            call(connection)
        trial.rollback()
        for sql, parameters in sent:
            if sql.startswith("SET"):
                continue
            (plan,) = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}", parameters
            ).scalar_one()
            pages = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
            found.append((pages, f"{sql}\n{outline(plan['Plan'])}"))
        connection.rollback()
    assert found
    return found


def outline(node: dict[str, Any], depth: int = 0) -> str:
    """A plan in a line a node: what it is, of which table by which index, rows, pages."""
    parts = [node["Node Type"], node.get("Relation Name", ""), node.get("Index Name", "")]
    parts += [
        f"rows {node['Actual Rows']} x {node['Actual Loops']}",
        f"removed {node.get('Rows Removed by Filter', 0)}",
    ]
    line = "  " * depth + " ".join([*parts, f"pages {node['Shared Hit Blocks'] + node['Shared Read Blocks']}"])
    return "\n".join([line, *(outline(child, depth + 1) for child in node.get("Plans", ()))])


@pytest.mark.parametrize("name", CASES)
def test_a_statement_reads_a_bounded_number_of_pages(statistics: str, name: str) -> None:
    case = CASES[name]
    for pages, plan in costs(case.call):
        assert pages <= case.pages, plan


@pytest.mark.xfail(
    strict=True, reason="what waits is counted, up to PAYMENTS_BACKLOG_LIMIT; web/limits/backlog says how often"
)
@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_is_not_bounded_yet(statistics: str, name: str) -> None:
    test_a_statement_reads_a_bounded_number_of_pages(statistics, name)


def test_each_statement_is_listed(statistics: str) -> None:
    sent: set[str] = set()
    for case in [*CASES.values(), *UNBOUNDED.values()]:
        with database.engine().connect() as connection, recorded_statements() as statements:
            case.call(connection)
            connection.rollback()
        sent |= {sql for sql, _ in statements}
    measured = {name for name, sql in all_statements().items() if sql in sent}
    rest = {
        name for name in all_statements() if not name.startswith(("verification.", "verification_since."))
    } - measured
    assert rest == set(NOT_REPEATED)


def all_statements() -> dict[str, str]:
    """The text that the driver gets, by the statement's module and name."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(shared.__path__, "shared.")
        if not module.ispkg and (".queries" in module.name or module.name in SQL_OF_THE_BASE)
    ]
    return {
        f"{module.__name__.removesuffix('.queries').rpartition('.')[2]}.{name}": str(
            value.compile(dialect=psycopg2.dialect())
        )
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, TextClause)
    }
