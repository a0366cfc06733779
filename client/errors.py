"""What a call can raise, by what the caller can do about it."""

from uuid import UUID

from client.values import Transaction


class PaymentsApiError(Exception):
    """Base of them all. `code` is stable and published; `status` is HTTP's, None where no answer came."""

    def __init__(self, code: str, detail: str, status: int | None, request_id: str) -> None:
        super().__init__(f"{detail} ({code}, request {request_id})")
        self.code = code
        self.detail = detail
        self.status = status
        self.request_id = request_id


class InvalidRequest(PaymentsApiError):
    """The request breaks a rule. Nothing has happened; sending it again changes nothing."""


class NotFound(PaymentsApiError):
    """There is no such user or transaction."""


class UidReused(PaymentsApiError):
    """The uid is taken by a transaction with other content. Nothing has happened."""


class Rejected(PaymentsApiError):
    """The payment was rejected, for good. `code` is the reason, `transaction` how it stands.

    `detail` is the service's, where it answered the payment itself: it says how to pay now what was rejected only because
    its `timestamp` dates it back.
    """

    def __init__(self, transaction: Transaction, request_id: str, detail: str = "") -> None:
        reason = str(transaction.reason)
        message = detail or f"The transaction was rejected: {reason}."
        super().__init__(reason, f"{message} Its uid is {transaction.uid}.", 409, request_id)
        self.transaction = transaction


class Unavailable(PaymentsApiError):
    """We tried for as long as we were allowed to. The outcome of a payment is unknown: repeat it with `uid`."""

    uid: UUID | None = None
    retry_after: float = 0.0  # seconds, as the service asked
