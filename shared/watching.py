"""What an operator watches besides the backlog: webhooks, the last proof of the books, what holds back vacuum."""

from typing import NamedTuple

from shared.database import reading
from shared.queries import watched
from shared.queries.letters import Waiting, read_waiting
from shared.queries.watched import Verification


class Watched(NamedTuple):
    """How it all stands; `verification` is None while none was recorded."""

    waiting: Waiting
    oldest_snapshot_seconds: float
    verification: Verification | None


def get_watched() -> Watched:
    with reading() as connection:
        return Watched(
            read_waiting(connection),
            watched.read_oldest_snapshot(connection),
            watched.find_verification(connection),
        )
