"""Instants: ISO 8601 in, UTC to the microsecond inside, RFC 3339 out."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from shared.timestamps import format_instant, parse_instant

pytestmark = pytest.mark.unit

NOON = datetime(2023, 1, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "instant"),
    [
        ("2023-01-30T12:00:00Z", NOON),
        ("2023-01-30t12:00:00z", NOON),
        ("2023-01-30T12:00:00", NOON),  # naive: UTC
        ("2023-01-30 12:00:00", NOON),
        ("2023-01-30T12:00", NOON),
        ("20230130T120000Z", NOON),
        ("2023-01-30", NOON.replace(hour=0)),
        ("2023-01-30T14:00:00+02:00", NOON),
        ("2023-01-30T14:00:00+0200", NOON),
        ("2023-01-30T14:00:00+02", NOON),
        ("2023-01-30T14:00:00 02:00", NOON),  # an unescaped + of a URL
        ("2023-01-30 14:00:00 02:00", NOON),
        ("2023-01-30T06:30:00-05:30", NOON),
        ("2023-01-30T12:00:00.5Z", NOON + timedelta(milliseconds=500)),
        ("2023-01-30T12:00:00,5Z", NOON + timedelta(milliseconds=500)),
        ("2023-01-30T12:00:00.000001Z", NOON + timedelta(microseconds=1)),
        ("2023-01-30T12:00:00.0000019Z", NOON + timedelta(microseconds=1)),
        ("2023-01-30T12:00:00.123456789123456789Z", NOON + timedelta(microseconds=123456)),
        ("2023-01-30T12:00:00." + "9" * 60_000 + "Z", NOON + timedelta(microseconds=999999)),
        ("2023-01-30T14:00:00.25 02:00", NOON + timedelta(milliseconds=250)),
        ("0001-01-01", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=UTC)),
        ("2024-02-29", datetime(2024, 2, 29, tzinfo=UTC)),
    ],
)
def test_an_instant_is_read_in_utc(written: str, instant: datetime) -> None:
    assert parse_instant(written) == instant
    assert parse_instant(written).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "bad",
    [
        *("", " ", "now", "noon", "NaN", "1675080000", "2023", "2023-01", "2023-W05-1", "2023-030"),
        *("2023-13-01", "2023-02-29", "2023-01-32", "2023-00-10", "0000-01-01", "10000-01-01", "-2023-01-30"),
        *("2023-01-30T25:00:00Z", "2023-01-30T12:60:00Z", "2023-01-30T12:00:60Z", "2023-01-30T12:00:00+24:00"),
        *("2023-01-30Z", "2023-01-30x12:00:00Z", "2023-01-30T12:00:00.Z", "2023-01-30T12:00:00 UTC", "2023-0130"),
        *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"),
        *(" 2023-01-30", "2023-01-30\n", "2023-01-30T12:00:00Z\x00", "２０２３-01-30", "٢٠٢٣-01-30"),
        *(
            "2023-01-30T24:00:00Z",
            "2023-01-30T24:00",
            "20230130T24",
            "2023-01-30T24:00:00.000Z",
            "2023-01-30T24:00+02:00",
        ),
        *("2023-01-30T12:00:00+05:60", "2023-01-30T12:0000Z", "2023-01-30T1200:00Z", "2023-01-30T12:00:00.1٢Z"),
        *(None, 0, 1675080000, 1.5, True, [], {}, NOON),
    ],
)
def test_what_is_no_instant_is_refused_with_a_sentence(bad: object) -> None:
    with pytest.raises(ValueError, match=r"^must be an "):
        parse_instant(bad)


@pytest.mark.parametrize(
    ("instant", "written"),
    [
        (NOON, "2023-01-30T12:00:00.000000Z"),
        (NOON + timedelta(microseconds=1), "2023-01-30T12:00:00.000001Z"),
        (NOON.astimezone(timezone(timedelta(hours=5, minutes=30))), "2023-01-30T12:00:00.000000Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
    ],
)
def test_an_instant_is_written_in_utc_with_six_digits(instant: datetime, written: str) -> None:
    assert format_instant(instant) == written
    assert parse_instant(written) == instant
