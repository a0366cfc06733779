"""The commit of lists. They bypass the group commit, where a single PUT would wait for each of them."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from functools import partial
from typing import Final

from shared.errors import Unavailable
from shared.payments.accept import Reply, accept, isolate_failing
from shared.payments.model import TransactionRequest
from shared.settings import settings
from web.commit.group_commit import COMMIT_TIMEOUT_SECONDS, group_commit
from web.limits.backlog import backlog_reader

MAX_LIST_COMMITS: Final = 2  # at once: each uses a core of Postgres for a while
MAX_FAILING_ROWS: Final = 16  # if more rows fail one by one, the cause is not the rows
_commits = ThreadPoolExecutor(MAX_LIST_COMMITS, thread_name_prefix="bulk")  # its threads start with the first list


def submit(requests: Sequence[TransactionRequest]) -> list[Reply]:
    """Accepts the requests in one commit and returns one reply for each, in order.

    Raises Unavailable if nothing was accepted, or with the code database_unavailable if the result is not known in
    time. Passes on the errors of SQLAlchemy.
    """
    pending_replies = _commits.submit(_accept_unless_full, requests, time.monotonic() + COMMIT_TIMEOUT_SECONDS)
    try:
        return pending_replies.result(COMMIT_TIMEOUT_SECONDS)
    except NotInTime:
        if pending_replies.cancel():
            raise Unavailable("overloaded", "Other lists are being committed. Nothing was accepted.") from None
        raise Unavailable(
            "database_unavailable",
            "The database did not answer in time. It is not known whether the list was accepted: send it again.",
        ) from None


def _accept_unless_full(requests: Sequence[TransactionRequest], deadline: float) -> list[Reply]:
    # Not `is_full`: its value may be old if no request came for a while, and a list adds many transactions at once.
    if backlog_reader.read().pending >= settings().backlog_limit:
        raise Unavailable(
            "backlog_full",
            "Too many transactions wait to be settled. Nothing was accepted: send the list again later.",
            retry_seconds=backlog_reader.retry_seconds(),
        )
    replies = isolate_failing(partial(accept, bulk=True), requests, deadline=deadline, max_failing=MAX_FAILING_ROWS)
    group_commit.ring(requests, replies)
    return replies
