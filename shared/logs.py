"""Logs are bare JSON lines on standard output, one shape for every process and library.

structlog renders both its own events and the standard library's records, so that a line of Celery's or
granian's reads like one of ours.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from shared.settings import settings

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.stdlib.ExtraAdder(),
]


def _add_process(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["process"] = settings().process
    return event


def formatter() -> logging.Formatter:
    """A standard-library formatter that renders any record as one JSON line."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # never the locals: they hold names, amounts and passwords
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            _add_process,
            structlog.processors.JSONRenderer(ensure_ascii=True),
        ],
    )


def configure() -> None:
    """Send all logs of this process, ours and the libraries', to standard output as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings().log_level.upper())
    structlog.configure(
        processors=[*_SHARED[:-1], structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> Any:
    """A logger whose events are keyword arguments: log.info("settled", lane=7, count=120)."""
    return structlog.stdlib.get_logger(name)
