"""`python -m worker.liveness`: liveness probe of a worker's container. Exit code 1 means that it must be restarted.

A worker that cannot reach the broker does not touch its heartbeat file, but its sweep still settles payments. So an old
heartbeat is a failure only while the broker answers and the worker does not report that it waits for it.
"""

import sys
import time
from pathlib import Path
from typing import Final

from redis import RedisError

from shared import redis_client
from shared.settings import settings
from worker.broker import waiting

HEARTBEAT_MAX_AGE_SECONDS: Final = 60.0  # it is touched every five seconds
PING_TIMEOUT_SECONDS: Final = 2.0


def main() -> int:
    """Runs the probe. Returns the exit code: 0 if the worker is alive."""
    silence = _seconds_since(Path(settings().heartbeat_file))
    waiting_file = waiting.file()
    for seconds in (silence, _seconds_since(waiting_file) if waiting_file else None):
        if seconds is not None and seconds < HEARTBEAT_MAX_AGE_SECONDS:
            return 0
    if not _broker_answers():
        return 0
    since = "never yet" if silence is None else f"{silence:.0f} s ago"
    sys.stderr.write(f"the broker answers, and the heartbeat was {since}\n")
    return 1


def _seconds_since(file: Path) -> float | None:
    """Returns the age of a file in seconds, or None if it does not exist."""
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
