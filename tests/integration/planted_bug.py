"""A bug in the rules, planted: what parking is for."""

from collections.abc import Iterator

import pytest

import shared.payments.rules
from shared.database import transaction
from shared.payments.model import TransactionRequest
from shared.payments.queries import parked

UNLUCKY = 13  # the amount that the planted bug cannot settle


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A bug in the rules that one amount meets. `bug.undo()` is the release that fixes it."""
    judge = shared.payments.rules.judge

    def stumble(row: shared.payments.rules.Pending, *others: object) -> object:
        if row.amount == UNLUCKY:
            raise ZeroDivisionError("a planted bug")
        return judge(row, *others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(shared.payments.rules, "judge", stumble)
        yield patch


def are_parked(*requests: TransactionRequest) -> list[bool]:
    with transaction() as connection:
        return [parked.find_parked(connection, request.uid) is not None for request in requests]
