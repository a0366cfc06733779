"""`python -m worker.alive`: is a worker's container to be started anew? Exit code 0: no.

A worker that waits for a broker which is away or refuses it does not touch its heartbeat, and its sweep goes on
settling: it must not be ended for that. So an old heartbeat counts only while the broker answers and the worker does
not say that it waits.
"""

import sys
import time
from pathlib import Path
from typing import Final

from redis import RedisError

from shared import redis_client
from shared.settings import settings
from worker import waiting

HEARTBEAT_MAX_AGE_SECONDS: Final = 60.0  # the file is touched every five
PING_TIMEOUT_SECONDS: Final = 2.0


def main() -> int:
    silence = _seconds_since(Path(settings().heartbeat_file))
    waited = waiting.file()
    for seconds in (silence, _seconds_since(waited) if waited else None):
        if seconds is not None and seconds < HEARTBEAT_MAX_AGE_SECONDS:
            return 0
    if not _broker_answers():
        return 0
    since = "never yet" if silence is None else f"{silence:.0f} s ago"
    sys.stderr.write(f"the broker answers, and the heartbeat was {since}\n")
    return 1


def _seconds_since(file: Path) -> float | None:
    """Returns the age of a file; None where there is none: the worker has not been ready, or has not waited."""
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return None


def _broker_answers() -> bool:
    try:
        return bool(redis_client.connect(PING_TIMEOUT_SECONDS).ping())
    except (RedisError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
