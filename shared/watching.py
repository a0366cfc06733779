"""What an operator watches besides the backlog: webhooks, the last proof of the books, what holds back vacuum."""

from shared.database import autocommit
from shared.queries import letters, watched
from shared.queries.letters import Waiting
from shared.queries.watched import Verification


def get_waiting() -> Waiting:
    """Returns how webhooks stand."""
    with autocommit() as connection:
        return letters.read_waiting(connection)


def get_oldest_snapshot_seconds() -> float:
    """Returns the age of the oldest transaction that holds back vacuum."""
    with autocommit() as connection:
        return watched.read_oldest_snapshot(connection)


def list_last_verification() -> list[Verification]:
    """Returns the last verification that was recorded, or nothing."""
    with autocommit() as connection:
        found = watched.find_verification(connection)
    return [found] if found else []
