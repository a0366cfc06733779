"""Logging: JSON lines on standard output, in one format for all processes and libraries.

structlog renders its own events and the records of the standard library, so that lines of Celery and granian have the
same format as ours.
"""

import atexit
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Final

import structlog

from shared.settings import settings

FLUSH_INTERVAL_SECONDS: Final = 0.02
MAX_BUFFERED_LINES: Final = 20_000
MAX_ATOMIC_WRITE_BYTES: Final = 4096

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _add_process(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["process"] = settings().process
    return event


# One encoder for all lines, because `json.dumps` with options creates one per call.
_encode: Final = json.JSONEncoder(ensure_ascii=True, default=repr).encode


def _write_json(event: MutableMapping[str, Any], **_: Any) -> str:
    return _encode(event)


_RENDERED: list[Any] = [
    # no local variables, because they hold names, amounts and passwords
    structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
    _add_process,
    structlog.processors.JSONRenderer(_write_json),
]


class _Logger(structlog.WriteLogger):
    """Writes rendered lines to standard output."""

    def __init__(self, name: str) -> None:
        super().__init__(sys.stdout)
        self.name = name


class _Lines:
    """A buffer of lines that a thread writes to a descriptor in batches.

    A write in each request releases the interpreter lock in mid-request. With many threads that costs more than
    rendering the line. If the reader stalls, lines are dropped and counted, and no request waits.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._arrival = threading.Event()
        self._writing = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._write_for_ever, name="logs", daemon=True).start()
        atexit.register(self.flush)

    def put(self, line: str) -> None:
        if len(self._lines) >= MAX_BUFFERED_LINES:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._arrival.is_set():
            self._arrival.set()

    def flush(self) -> None:
        with self._writing:
            while piece := self._take():
                os.write(self._descriptor, piece)

    def _write_for_ever(self) -> None:
        while True:
            self._arrival.wait()
            time.sleep(FLUSH_INTERVAL_SECONDS)
            self._arrival.clear()
            self.flush()

    def _take(self) -> bytes:
        """Returns whole lines of at most MAX_ATOMIC_WRITE_BYTES, so that lines of other processes do not mix in.

        A longer line is returned alone.
        """
        taken = bytearray()
        while (self._lines and len(taken) + len(self._lines[0]) < MAX_ATOMIC_WRITE_BYTES) or (
            self._lines and not taken
        ):
            taken += self._lines.popleft().encode() + b"\n"
        if self._dropped and not self._lines:
            dropped, self._dropped = self._dropped, 0
            line = {"event": "log lines dropped", "level": "warning", "count": dropped, "process": settings().process}
            taken += json.dumps(line).encode() + b"\n"
        return bytes(taken)


class _BatchingLogger:
    """Passes lines to _Lines. Warnings and errors are written before the call returns."""

    def __init__(self, name: str, lines: _Lines) -> None:
        self.name = name
        self._lines = lines

    def info(self, line: str) -> None:
        self._lines.put(line)

    def error(self, line: str) -> None:
        self._lines.put(line)
        self._lines.flush()

    debug = info
    warning = critical = error


def formatter() -> logging.Formatter:
    """Returns a formatter of the standard library that renders each record as one JSON line."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_RENDERED],
    )


def configure(*, in_batches: bool = False) -> None:
    """Configures this process to write all logs, ours and those of libraries, to standard output as JSON lines.

    `in_batches` is for a process with many threads and many lines. It starts a thread, so call it after a fork.
    """
    level = settings().log_level.upper()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    factory: Callable[[str], Any] = _Logger
    if in_batches:
        lines = _Lines(sys.stdout.fileno())
        lines.start()
        factory = partial(_BatchingLogger, lines=lines)
    # Our events bypass the standard library, because a line then costs a third.
    structlog.configure(
        processors=[*_SHARED, *_RENDERED],
        logger_factory=factory,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        cache_logger_on_first_use=True,
    )


def write_line(event: str, level: str = "info", *, descriptor: int = 1, **fields: object) -> None:
    """Writes one log line without buffers and locks, for signal handlers and for processes that fork."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    process = os.environ.get("PAYMENTS_PROCESS", "payments")  # not settings(), because they may be invalid
    line = json.dumps({"timestamp": now, "level": level, "event": event, "process": process, **fields})
    with suppress(OSError):
        os.write(descriptor, f"{line}\n".encode())


def capture_warnings_and_crashes() -> None:
    """Logs warnings and uncaught exceptions as JSON, which Python would print as text."""
    logging.captureWarnings(capture=True)
    log = logging.getLogger("crash")

    def log_crash(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        log.critical("uncaught exception", exc_info=(kind, error, traceback))

    def log_crash_of_thread(crash: threading.ExceptHookArgs) -> None:
        if crash.exc_type is SystemExit:
            return
        error = crash.exc_value or crash.exc_type()
        log.critical("uncaught exception in a thread", exc_info=(crash.exc_type, error, crash.exc_traceback))

    sys.excepthook = log_crash
    threading.excepthook = log_crash_of_thread


def get_logger(name: str) -> Any:
    """Returns a logger that takes fields as keyword arguments: log.info("settled", lane=7, count=120)."""
    return structlog.get_logger(name)
