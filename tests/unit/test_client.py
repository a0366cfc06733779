"""What the client does without a service: uids, amounts and instants as they go out."""

import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, cast
from uuid import RFC_4122

import pytest

from payments_client import Payment, Payments, make_uid

pytestmark = pytest.mark.unit


def test_a_uid_is_a_uuid_of_version_7() -> None:
    for uid in (make_uid() for _ in range(1000)):
        assert (uid.version, uid.variant) == (7, RFC_4122)


def test_a_uid_begins_with_the_milliseconds_of_its_making() -> None:
    before = time.time_ns() // 1_000_000
    uid = make_uid()
    assert before <= uid.int >> 80 <= time.time_ns() // 1_000_000


def test_uids_made_one_after_the_other_sort_so() -> None:
    made = []
    for _ in range(5):
        made.append(make_uid())
        time.sleep(0.002)
    assert made == sorted(made)
    assert [str(uid) for uid in made] == sorted(str(uid) for uid in made)


def test_uids_of_one_millisecond_differ() -> None:
    assert len({make_uid() for _ in range(100_000)}) == 100_000


@pytest.mark.parametrize("amount", [1.5, 100, True, None])
def test_an_amount_that_is_not_exact_text_is_refused(amount: Any) -> None:
    with pytest.raises(TypeError):
        Payment("DEPOSIT", 1, cast(str, amount))


@pytest.mark.parametrize(
    ("amount", "written"), [("100", "100"), (Decimal("1E+2"), "100"), (Decimal("0.10"), "0.10"), (Decimal(7), "7")]
)
def test_an_amount_goes_out_as_it_is(amount: str | Decimal, written: str) -> None:
    assert Payment("DEPOSIT", 1, amount).as_json()["amount"] == written


def test_a_timestamp_goes_out_with_its_zone_and_needs_one() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=2)))
    assert Payment("DEPOSIT", 1, "1", at).as_json()["timestamp"] == "2026-01-02T03:04:05.000006+02:00"
    assert "timestamp" not in Payment("DEPOSIT", 1, "1").as_json()
    with pytest.raises(ValueError, match="zone"):
        Payment("DEPOSIT", 1, "1", at.replace(tzinfo=None))
    with pytest.raises(ValueError, match="zone"):
        Payments("http://127.0.0.1:1").balance(1, datetime.now(UTC).replace(tzinfo=None))


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Payments(url)
