"""The errors of a call, one class for each way in which the caller can react."""

from uuid import UUID

from payments_client.values import Transaction


class PaymentsApiError(Exception):
    """The base of all errors here. `code` is stable and published. `status` is HTTP's, None without a response."""

    def __init__(self, code: str, detail: str, status: int | None, request_id: str) -> None:
        super().__init__(f"{detail} ({code}, request {request_id})")
        self.code = code
        self.detail = detail
        self.status = status
        self.request_id = request_id


class InvalidRequest(PaymentsApiError):
    """The request is invalid. Nothing was accepted, and a retry gives the same error."""


class NotFound(PaymentsApiError):
    """There is no such user or transaction."""


class UidReused(PaymentsApiError):
    """A transaction with other content has the same uid. Nothing was accepted."""


class Rejected(PaymentsApiError):
    """The payment is rejected, and this is final. `code` is the reason, `transaction` the rejected transaction.

    `detail` is the text of the service if the rejection was the response to the payment. If the payment was rejected
    only because of its `timestamp`, the text says how to pay now.
    """

    def __init__(self, transaction: Transaction, request_id: str, detail: str = "") -> None:
        reason = str(transaction.reason)
        message = detail or f"The transaction was rejected: {reason}."
        super().__init__(reason, f"{message} Its uid is {transaction.uid}.", 409, request_id)
        self.transaction = transaction


class Unavailable(PaymentsApiError):
    """There was no definite response in time. The outcome of a payment is unknown: repeat it with the same `uid`."""

    uid: UUID | None = None
    retry_after: float = 0.0  # seconds, from the header Retry-After
