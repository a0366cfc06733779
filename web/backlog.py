"""How much waits to be settled, and whether that is too much to take in more."""

from typing import Final

from shared import history
from shared.errors import Unavailable
from shared.queries.lanes import Backlog
from shared.settings import settings
from web.readings import Reading

FRESH_SECONDS: Final = 0.5


class BacklogReader(Reading[Backlog]):
    """One reading for all: the limit is asked for at each commit, the metrics now and then."""

    def __init__(self) -> None:
        super().__init__("how much waits", history.get_backlog, FRESH_SECONDS)

    def read(self) -> Backlog:
        """As it was half a second ago at most. Raises Unavailable."""
        return self.get(FRESH_SECONDS)

    def is_full(self) -> bool:
        """By the last reading. Waits for a new one only where an old one says so: it may be long over."""
        backlog, age = self.latest()
        full = backlog is not None and backlog.pending >= settings().backlog_limit
        if not full or age <= FRESH_SECONDS:
            return full
        try:
            return self.read().pending >= settings().backlog_limit
        except Unavailable:
            return True


reader = BacklogReader()
