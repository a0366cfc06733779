"""The service's own code inside the benchmark's process, on servers of choice."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from shared import database, logs
from shared.payments import doorbell
from shared.settings import settings


@contextmanager
def use(database_url: str, broker_url: str, log: Path) -> Iterator[None]:
    """`shared` works on these servers while the block runs. It finds them by the environment, and logs, as ever."""
    kept = {name: os.environ.get(name) for name in ("DATABASE_URL", "BROKER_URL")}
    os.environ.update(DATABASE_URL=database_url, BROKER_URL=broker_url)
    _forget()
    try:
        with open(log, "a", encoding="utf-8") as output:
            with redirect_stdout(output):
                logs.configure()
            yield
    finally:
        logging.getLogger().handlers.clear()
        database.engine().dispose()
        for name, value in kept.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        _forget()


def _forget() -> None:
    for cached in (settings, database.engine, doorbell._redis, doorbell._sender):
        cached.cache_clear()
