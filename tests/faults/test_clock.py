"""Postgres's clock is stepped, as when a server's clock is set: nothing is refused, reordered or made negative by it.

Our statements find `now` and `clock_timestamp` of ours before those of the system, and the real ones in them.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.faults.paying import COMPLETED_ONCE, add_user, balance, payment, put, wait_final
from tests.faults.stack import Stack
from tests.kit.http import Http

pytestmark = pytest.mark.system

STEPS = (45, -45, 0, -59, 59, 0)  # seconds off
CLOCK = """
    CREATE SCHEMA stepped;
    CREATE TABLE stepped.clock (seconds double precision NOT NULL);
    INSERT INTO stepped.clock VALUES (0);
    CREATE FUNCTION stepped.now() RETURNS timestamptz LANGUAGE sql VOLATILE AS
        'SELECT pg_catalog.now() + make_interval(secs => seconds) FROM stepped.clock';
    CREATE FUNCTION stepped.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
        'SELECT pg_catalog.clock_timestamp() + make_interval(secs => seconds) FROM stepped.clock';
    DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = stepped, pg_catalog, public', current_database());
    END $$;
"""
NO_CLOCK = """
    DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET search_path', current_database()); END $$;
    DROP SCHEMA stepped CASCADE;
"""
CONNECT_AGAIN = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'payments-%'"
MOMENTS = """
    SELECT extract(epoch FROM accepted_at - pg_catalog.now()), extract(epoch FROM settled_at - pg_catalog.now())
    FROM transactions WHERE uid = %s
"""


@pytest.fixture
def clock(stack: Stack) -> Iterator[Stack]:
    run_sql(stack, CLOCK)
    run_sql(stack, CONNECT_AGAIN)
    stack.await_ready()
    yield stack
    run_sql(stack, NO_CLOCK)
    run_sql(stack, CONNECT_AGAIN)


def run_sql(stack: Stack, statement: str) -> None:
    with stack.session() as cursor:
        cursor.execute(statement)
        cursor.connection.commit()


def test_a_stepped_clock_rejects_nothing_and_breaks_nothing(clock: Stack, http: Http) -> None:
    """All the money goes out at every step, once after it came in: an order that failed would be insufficient."""
    user_id = add_user(http)
    for seconds in STEPS:
        run_sql(clock, f"UPDATE stepped.clock SET seconds = {seconds}")
        for number, type_ in enumerate(("DEPOSIT", "WITHDRAW") * 3):
            content = payment(user_id, "1.00", type_)
            if number in (2, 3):
                content["timestamp"] = datetime.now(UTC).isoformat()  # the client's clock is right
            answer = put(http, content, wait=5)
            assert answer
            assert answer.status == 200, (seconds, answer)
        assert balance(http, user_id) == "0.00"
        assert wait_final(clock, content["uid"]) == COMPLETED_ONCE
        accepted, settled = moments(clock, content["uid"])
        assert accepted == pytest.approx(seconds, abs=5), "the step was seen"
        assert settled == pytest.approx(seconds, abs=5)


def moments(stack: Stack, uid: str) -> tuple[float, float]:
    """Acceptance and settling, in seconds from the real clock's now."""
    with stack.session() as cursor:
        cursor.execute(MOMENTS, [uid])
        ((accepted, settled),) = cursor.fetchall()
        return float(accepted), float(settled)
