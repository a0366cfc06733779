"""The errors of use cases: one base class with a stable code, and five kinds.

Errors do not know their HTTP status; web owns that table. A batch returns an error for each failed item instead of
raising it.
"""

from collections.abc import Sequence
from typing import NamedTuple


class FieldError(NamedTuple):
    """An invalid field and the reason. `field` is the path as the client wrote it."""

    field: str
    message: str


class PaymentsError(Exception):
    """Base of all errors that a caller can act on. `code` is stable and published.

    `retry_seconds` is the time to wait before a retry, for errors that a retry can fix.
    """

    def __init__(self, code: str, detail: str, fields: Sequence[FieldError] = (), retry_seconds: int = 1) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.fields = tuple(fields)
        self.retry_seconds = retry_seconds


class Invalid(PaymentsError):
    """The request is malformed, or breaks a rule that needs no look-up."""


class NotFound(PaymentsError):
    """The requested object does not exist."""


class Conflict(PaymentsError):
    """The request contradicts the content already stored under its key."""

    # Not always a 409: `uid_reused` is a 422, because a 409 of a PUT means that the transaction is REJECTED.


class Refused(PaymentsError):
    """The caller has no valid key, no sufficient scope, or sends too many requests."""


class Unavailable(PaymentsError):
    """The service cannot answer now. The result may be unknown; the client may send the same request again."""


class NotReady(Unavailable):
    """A server answers, but its schema or settings cannot keep the promises of the service."""

    def __init__(self, detail: str) -> None:
        super().__init__("not_ready", detail)


def invalid_field(field: str, message: str) -> Invalid:
    """Returns the error for one invalid field."""
    return Invalid("invalid_request", f"{field}: {message}", [FieldError(field, message)])


def user_not_found(user_id: object) -> NotFound:
    """Returns the error for an unknown user."""
    return NotFound("user_not_found", f"There is no user {user_id}.")


def transaction_not_found(uid: object) -> NotFound:
    """Returns the error for an unknown transaction."""
    return NotFound("transaction_not_found", f"There is no transaction {uid}.")


def webhook_not_found(webhook_id: object) -> NotFound:
    """Returns the error for an unknown webhook."""
    return NotFound("webhook_not_found", f"There is no webhook {webhook_id}.")


def cursor_ahead() -> Conflict:
    """Returns the error for a cursor beyond the last event of the feed."""
    return Conflict(
        "cursor_ahead",
        "The cursor lies ahead of all events, as after a restore of an older state. Forget what was read after the restored "
        "point, and begin again from a cursor that was stored before it.",
    )


def uid_reused(uid: object, fields: Sequence[str]) -> Conflict:
    """Returns the error for a uid that a transaction with other content has; `fields` differ."""
    return Conflict(
        "uid_reused",
        f"The uid {uid} is taken by a transaction with other content: {', '.join(fields)} differ.",
        [FieldError(field, "differs from the transaction that has this uid") for field in fields],
    )
