"""A transaction as JSON has it: in answers, in the CSV's columns, and in what other services are told."""

from typing import Any

from shared.instants import format_instant
from shared.money import format_amount
from shared.queries.transactions import Transaction


def show_transaction(t: Transaction) -> dict[str, Any]:
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
