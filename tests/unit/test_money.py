"""Amounts: read exactly or refused."""

from decimal import Decimal

import pytest

from shared.money import MAX_AMOUNT, MAX_BALANCE, format_amount, parse_amount

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("written", "minor"),
    [
        ("100", 100_00),
        ("100.0", 100_00),
        ("100.00", 100_00),
        ("0.01", 1),
        ("0.1", 10),
        ("000100.5", 100_50),
        ("9999999999.99", MAX_AMOUNT),
        (100, 100_00),
        (Decimal("100.5"), 100_50),
        (Decimal("100.50"), 100_50),
        (Decimal("0.29"), 29),  # as a float it would be 28.999999999999996 minor units
        (Decimal("1.15"), 115),
    ],
)
def test_an_amount_is_read_to_the_minor_unit(written: object, minor: int) -> None:
    assert parse_amount(written) == minor


@pytest.mark.parametrize("zero", ["0", "0.0", "0.00", "000", 0, Decimal("0.00")])
def test_zero_is_refused(zero: object) -> None:
    with pytest.raises(ValueError, match="greater than zero"):
        parse_amount(zero)


@pytest.mark.parametrize("much", ["10000000000", "10000000000.00", 10**10, Decimal("10000000000"), "9" * 40])
def test_more_than_the_most_is_refused(much: object) -> None:
    with pytest.raises(ValueError, match=r"at most 9999999999\.99"):
        parse_amount(much)


@pytest.mark.parametrize(
    "bad",
    [
        *("-1", "-0.01", -1, Decimal("-1"), "+1", "-0"),
        *("1.001", "0.001", "1.000", Decimal("1.001")),
        *("NaN", "Infinity", "-Infinity", Decimal("NaN"), Decimal("Infinity"), Decimal("sNaN")),
        *("", " ", ".", ".5", "5.", "1,00", "1 000", "1_000", " 1", "1 ", "1\n", "\t1", "1\x00", "0x10", "1e2", "ten"),
        *("１００", "٣", "1٫5", "१", "²"),
        *(Decimal("1E+2"), Decimal("1E+999999"), "9" * 41, "1" * 100_000, 10**5000),
        *(1.0, 100.5, float("nan"), True, False, None, [], {}, b"1", ["1"]),
    ],
    ids=lambda bad: repr(bad)[:20] if not isinstance(bad, int) or bad < 100 else "huge",
)
def test_what_is_no_amount_is_refused(bad: object) -> None:
    with pytest.raises(ValueError):
        parse_amount(bad)


@pytest.mark.parametrize(
    ("minor", "written"),
    [
        *[(0, "0.00"), (1, "0.01"), (99, "0.99"), (100, "1.00"), (10050, "100.50")],
        *[(-1, "-0.01"), (-100, "-1.00"), (-199, "-1.99")],
        (MAX_BALANCE, "90000000000000000.00"),
    ],
)
def test_an_amount_is_written_with_two_digits(minor: int, written: str) -> None:
    assert format_amount(minor) == written


def test_what_is_written_reads_back() -> None:
    for minor in (1, 9, 10, 99, 100, 101, 28, 29, 57, 115, 10**9, MAX_AMOUNT):
        assert parse_amount(format_amount(minor)) == minor


def test_the_most_balance_and_one_amount_more_fit_into_a_bigint() -> None:
    assert MAX_BALANCE + MAX_AMOUNT < 2**63
