"""What a use case may refuse, as values: one base with a stable code, five kinds.

No error knows its HTTP status: web owns that table. A batch hands errors back per item, so they are
returned as often as raised.
"""

from collections.abc import Sequence
from typing import NamedTuple


class FieldError(NamedTuple):
    """A field that is wrong and why; `field` is the path as the client wrote it."""

    field: str
    message: str


class PaymentsError(Exception):
    """Base of all errors that a caller can act on. `code` is stable and published.

    `retry_seconds` is when to try again, where that may help.
    """

    def __init__(self, code: str, detail: str, fields: Sequence[FieldError] = (), retry_seconds: int = 1) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.fields = tuple(fields)
        self.retry_seconds = retry_seconds


class Invalid(PaymentsError):
    """The request cannot be understood or breaks a rule that needs no look-up."""


class NotFound(PaymentsError):
    """The thing asked for does not exist."""


class Conflict(PaymentsError):
    """The request contradicts what is already stored under its key."""


class Refused(PaymentsError):
    """The caller may not: without a key, with a wrong one, with too small a scope, too often."""


class Unavailable(PaymentsError):
    """Not now: whether it happened may be unknown. The same request may be sent again."""


class NotReady(Unavailable):
    """The servers answer but cannot keep our promises as they are."""

    def __init__(self, detail: str) -> None:
        super().__init__("not_ready", detail)


def invalid_field(field: str, message: str) -> Invalid:
    return Invalid("invalid_request", f"{field}: {message}", [FieldError(field, message)])


def user_not_found(user_id: object) -> NotFound:
    return NotFound("user_not_found", f"There is no user {user_id}.")


def transaction_not_found(uid: object) -> NotFound:
    return NotFound("transaction_not_found", f"There is no transaction {uid}.")


def webhook_not_found(webhook_id: object) -> NotFound:
    return NotFound("webhook_not_found", f"There is no webhook {webhook_id}.")


def cursor_ahead() -> Conflict:
    return Conflict(
        "cursor_ahead",
        "The cursor lies ahead of all events, as after a restore of an older state. Forget what was read after the restored "
        "point, and begin again from a cursor that was stored before it.",
    )


def uid_reused(uid: object, fields: Sequence[str]) -> Conflict:
    return Conflict(
        "uid_reused",
        f"The uid {uid} is taken by a transaction with other content: {', '.join(fields)} differ.",
        [FieldError(field, "differs from the transaction that has this uid") for field in fields],
    )
