"""The cursor of the events: the last event id of each lane, as a text that needs no escaping anywhere.

One number would skip events: ids are given out before they commit. Within a lane they commit in order.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Final

from shared.status import LANES

VERSION: Final = 1
MOST_ID: Final = 2**63 - 1
MOST_CHARACTERS: Final = 220  # a version and 16 ids of nine bytes each
CURSOR_PATTERN: Final = f"^[A-Za-z0-9_-]{{0,{MOST_CHARACTERS}}}$"


def write_cursor(ids: Sequence[int]) -> str:
    """The text that stands for the last event id of each lane."""
    return urlsafe_b64encode(bytes([VERSION]) + b"".join(map(_varint, ids))).rstrip(b"=").decode()


def read_cursor(text: str) -> list[int]:
    """The last event id of each lane; all zero, the beginning, for an empty text. Raises ValueError."""
    if not text:
        return [0] * LANES
    try:
        if len(text) > MOST_CHARACTERS:
            raise ValueError
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        ids = _numbers(raw[1:])
        # written again it must be the same: one cursor has one spelling, and nothing that is none is let through
        if raw[:1] != bytes([VERSION]) or len(ids) != LANES or max(ids) > MOST_ID or write_cursor(ids) != text:
            raise ValueError
    except ValueError:
        raise ValueError("is none that this service gave") from None
    return ids


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def _numbers(raw: bytes) -> list[int]:
    ids, number, shift = [], 0, 0
    for byte in raw:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            ids.append(number)
            number, shift = 0, 0
    return ids
