"""The cursors of pages: of a statement and of dead letters. The feed's is in shared.payments.feed."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from shared.payments.model import StatementKey
from shared.webhooks.model import DeadLetterKey

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# Microseconds since 1970 (up to the year 5138), and the number in the order of acceptance.
STATEMENT_CURSOR_PATTERN: Final = "^([0-9]{1,17}-[0-9]{1,18})?$"


def write_cursor(key: StatementKey | None) -> str | None:
    """Returns the cursor of a statement's next page; None if there is none. Digits and one hyphen need no escaping."""
    return key and f"{(key.accepted_at - _EPOCH) // _MICROSECOND}-{key.accept_order}"


def parse_statement_cursor(text: str) -> StatementKey | None:
    """Returns the key after which a statement's page starts; None for an empty text, which is the first page.

    Raises ValueError if the text is not such a cursor.
    """
    if not re.fullmatch(STATEMENT_CURSOR_PATTERN, text, re.ASCII):
        raise ValueError("is not a cursor of this address")
    if not text:
        return None
    microseconds, order = text.split("-")
    return StatementKey(_EPOCH + int(microseconds) * _MICROSECOND, int(order))


DEAD_LETTER_CURSOR_PATTERN: Final = "^([0-9]{1,18}-[0-9]{1,4})?$"


def read_letter_key(text: str) -> DeadLetterKey | None:
    """Returns the key after which a page of dead letters starts; None for an empty text, which is the first page.

    Raises ValueError if the text is not such a cursor.
    """
    if not re.fullmatch(DEAD_LETTER_CURSOR_PATTERN, text, re.ASCII):
        raise ValueError("is not a cursor of this address")
    return DeadLetterKey(*map(int, text.split("-"))) if text else None
