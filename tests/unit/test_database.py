"""Which errors say nothing of the row that met them, and how values are bound as arrays."""

from datetime import UTC, datetime
from uuid import UUID

import psycopg2  # type: ignore[import-untyped]
import pytest
from sqlalchemy import exc

from shared.database import array, is_infrastructure_error, may_be_single_user, text_array

pytestmark = pytest.mark.unit


class _Refusal(psycopg2.DatabaseError):  # type: ignore[misc]
    """psycopg2 fills `pgcode` from the server's answer; None where the connection was lost."""

    def __init__(self, pgcode: str | None) -> None:
        super().__init__("refused")
        self._code = pgcode

    @property
    def pgcode(self) -> str | None:
        return self._code


def _raised(kind: type[exc.DBAPIError], pgcode: str | None, lost: bool = False) -> exc.DBAPIError:
    return kind("SELECT 1", {}, _Refusal(pgcode), connection_invalidated=lost)


@pytest.mark.parametrize("pgcode", ["08006", "25P03", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01"])
def test_what_the_server_could_not_do_just_now_is_machinery(pgcode: str) -> None:
    assert is_infrastructure_error(_raised(exc.DBAPIError, pgcode))


def test_a_lost_line_is_an_infrastructure_error() -> None:
    assert is_infrastructure_error(psycopg2.OperationalError("server closed the connection unexpectedly"))
    assert is_infrastructure_error(psycopg2.InterfaceError("connection already closed"))
    assert not is_infrastructure_error(psycopg2.ProgrammingError("the last operation didn't produce records"))


@pytest.mark.parametrize(
    ("pgcode", "may_be"),
    [
        ("53000", False),
        ("53100", False),  # the disk is full
        ("53200", True),  # memory, of this statement
        ("53300", False),  # no connection is to be had
        ("53400", True),  # temporary files, of this statement
        ("55P03", True),
        ("57014", True),
        ("57P01", False),
        ("XX001", True),
    ],
)
def test_a_full_disk_is_everybodys_and_a_lock_may_be_one_users(pgcode: str, may_be: bool) -> None:
    assert may_be_single_user(_raised(exc.OperationalError, pgcode)) == may_be


@pytest.mark.parametrize("pgcode", ["22003", "22P02", "23505", "23514", "23001", "42703", "42P01", "P0001"])
def test_what_a_row_or_our_statement_did_is_not_machinery(pgcode: str) -> None:
    assert not is_infrastructure_error(_raised(exc.DBAPIError, pgcode))
    assert not is_infrastructure_error(_raised(exc.OperationalError, pgcode))


def test_a_lost_connection_is_machinery_though_it_has_no_code() -> None:
    assert is_infrastructure_error(_raised(exc.OperationalError, None))
    assert is_infrastructure_error(_raised(exc.InterfaceError, None))
    assert is_infrastructure_error(_raised(exc.DatabaseError, None, lost=True))  # "no message from the libpq"
    assert is_infrastructure_error(exc.TimeoutError("the pool is empty"))


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError(7), ZeroDivisionError(), AssertionError()])
def test_a_bug_of_ours_is_not_machinery(error: Exception) -> None:
    assert not is_infrastructure_error(error)


def test_values_are_bound_as_one_array_literal() -> None:
    assert array([1, None, -2]) == '{"1",NULL,"-2"}'
    assert array([UUID(int=1)]) == '{"00000000-0000-0000-0000-000000000001"}'
    assert array([datetime(2023, 1, 30, tzinfo=UTC)]) == '{"2023-01-30 00:00:00+00:00"}'
    assert array([]) == "{}"


def test_free_text_is_quoted_in_an_array() -> None:
    assert text_array(['a"b', "c\\d", "{e,f}", "NULL", None]) == r'{"a\"b","c\\d","{e,f}","NULL",NULL}'
