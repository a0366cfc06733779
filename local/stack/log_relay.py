"""Standard output, which the log lines of all processes share. Its reader may be slow or gone.

Payments are more important than logs: if the reader stops, lines are dropped and counted, and no process waits.
"""

import json
import os
import re
import selectors
import time
from collections.abc import Callable
from datetime import UTC, datetime

Splitter = Callable[[str], tuple[str, str]]  # a line -> (level, event)

MAX_QUEUED_BYTES = 8 << 20
OUTPUT_CHUNK_BYTES = 4096  # a pipe that select() reports as writable takes this much without blocking

_TORNADO = re.compile(r"\[([DIWEC]) \d+ [\d:]+ [\w:]+\] (.*)")
_TORNADO_LEVELS = {"D": "debug", "I": "info", "W": "warning", "E": "error", "C": "critical"}
_LEVEL = re.compile(r"(?:^|[\[\s])(DEBUG|INFO|WARNING|ERROR|CRITICAL)(?:$|[\]:/\s])")


class Output:
    """A queue of lines for a descriptor. The loop writes them only when the descriptor is writable."""

    def __init__(self, selector: selectors.BaseSelector, descriptor: int) -> None:
        self._selector = selector
        self._descriptor = descriptor
        self._queue = bytearray()
        self._dropped = 0
        self._is_closed = False

    def write(self, line: str) -> None:
        """Queues a line, or drops and counts it if the queue is full."""
        if self._is_closed:
            return
        if len(self._queue) > MAX_QUEUED_BYTES:
            self._dropped += 1
            return
        if self._dropped:
            note, self._dropped = event("up", "warning", "log lines dropped", count=self._dropped), 0
            self.write(note)
        if not self._queue:
            self._selector.register(self._descriptor, selectors.EVENT_WRITE, self._send)
        self._queue += line.encode("utf-8", "replace") + b"\n"

    def drain(self, seconds: float) -> None:
        """Writes the queued lines, for at most `seconds`."""
        deadline = time.monotonic() + seconds
        while self._queue and (remaining := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(remaining):
                key.data()

    def _send(self) -> None:
        try:
            sent = os.write(self._descriptor, memoryview(self._queue)[:OUTPUT_CHUNK_BYTES].tobytes())
        except BlockingIOError:
            return
        except OSError:  # the reader has gone, and the service must go on
            self._is_closed = True
            self._queue.clear()
        else:
            del self._queue[:sent]
        if not self._queue:
            self._selector.unregister(self._descriptor)


def event(process: str, level: str, text: str, **fields: object) -> str:
    """Returns a log line in the format of shared.logs."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return json.dumps({"timestamp": now, "level": level, "event": text, "process": process, **fields})


def as_json(line: str, role: str, split: Splitter) -> str:
    """Returns a process's line as JSON. A JSON object gets its `process`; any other text becomes an event."""
    if line.startswith("{"):
        try:
            fields = json.loads(line)
        except ValueError:
            pass
        else:
            return line if "process" in fields else json.dumps({**fields, "process": role})
    level, text = split(line)
    return event(role, level, text)


def split_python(line: str) -> tuple[str, str]:
    """Returns the level and the text of a line that a library prints. The first line of a traceback is an error."""
    if line.startswith("Traceback "):
        return "error", line
    if match := _TORNADO.match(line):  # Flower's
        return _TORNADO_LEVELS[match[1]], match[2]
    match = _LEVEL.search(line)
    return match[1].lower() if match else "info", line


def text_of(line: str, split: Splitter) -> str:
    """Returns the text of a log line for a person. For an exception, returns only the type and message of the last."""
    try:
        fields = json.loads(line)
        exceptions = fields.get("exception")
        return f"{exceptions[-1]['exc_type']}: {exceptions[-1]['exc_value']}" if exceptions else str(fields["event"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return split(line)[1]
