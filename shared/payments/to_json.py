"""The JSON form of a transaction, used in answers, in CSV columns and in webhook bodies."""

from typing import Any

from shared.money import format_amount
from shared.payments.model import Transaction
from shared.timestamps import format_instant


def describe_rejection(t: Transaction) -> str:
    """Returns the explanation of a rejection. It uses stored values only, so each repeat gets the same text."""
    rejected = f"The transaction was rejected: {t.reason}."
    if t.lowest_balance is None or t.requested_at is None:
        return rejected
    return (
        f"{rejected} A withdrawal with an older timestamp is judged as of then: from {format_instant(t.requested_at)} on "
        f"the balance at its lowest was {format_amount(t.lowest_balance)}; send it without timestamp, under a new uid, "
        "to pay now."
    )


def transaction_to_json(t: Transaction) -> dict[str, Any]:
    """Returns a transaction as JSON members: amounts as decimal strings, instants as RFC 3339."""
    timestamp = t.effective_at or t.requested_at
    return {
        "uid": str(t.uid),
        "user_id": t.user_id,
        "type": t.type,
        "amount": format_amount(t.amount),
        "status": t.status,
        "reason": t.reason,
        "timestamp": format_instant(timestamp) if timestamp else None,
        "accepted_at": format_instant(t.accepted_at),
        "settled_at": format_instant(t.settled_at) if t.settled_at else None,
        "balance_after": None if t.balance_after is None else format_amount(t.balance_after),
    }
