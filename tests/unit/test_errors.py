"""Errors and the words of a transaction's life: stable, since clients and stored rows use them."""

import pytest

from shared import errors
from shared.payments.model import LANES, EventType, Reason, Status, Type, lane_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (errors.invalid_field("amount", "must be greater than zero"), errors.Invalid, "invalid_request"),
        (errors.user_not_found(7), errors.NotFound, "user_not_found"),
        (errors.transaction_not_found("u"), errors.NotFound, "transaction_not_found"),
        (errors.uid_reused("u", ["amount"]), errors.Conflict, "uid_reused"),
        (errors.NotReady("fsync is off"), errors.Unavailable, "not_ready"),
    ],
)
def test_each_error_has_its_kind_and_its_published_code(error: errors.PaymentsError, kind: type, code: str) -> None:
    assert type(error) is kind or isinstance(error, errors.NotReady)
    assert isinstance(error, kind)
    assert error.code == code
    assert isinstance(error, errors.PaymentsError)
    assert str(error) == error.detail


def test_a_bad_field_is_named() -> None:
    assert errors.invalid_field("amount", "is bad").fields == (errors.FieldError("amount", "is bad"),)


def test_every_field_that_differs_is_named() -> None:
    error = errors.uid_reused("u", ["amount", "timestamp"])
    assert [field.field for field in error.fields] == ["amount", "timestamp"]
    assert "amount, timestamp" in error.detail


def test_the_words_that_clients_and_rows_use_stay_as_they_are() -> None:
    assert {*Type} == {"DEPOSIT", "WITHDRAW"}
    assert {*Status} == {"PENDING", "COMPLETED", "REJECTED"}
    assert {*Reason} == {"insufficient_funds", "balance_limit"}
    assert {*EventType} == {"transaction.completed", "transaction.rejected"}


def test_a_lane_is_the_remainder_that_the_schema_computes() -> None:
    assert LANES == 16
    assert [lane_of(user_id) for user_id in (1, 15, 16, 17, 2**63 - 1)] == [1, 15, 0, 1, 15]
