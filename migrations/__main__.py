"""`python -m migrations`: applies all missing migrations and logs them. Exit code 0 or 1.

A database that a newer release has migrated stays unchanged (exit code 0): this code runs on a newer schema.

`python -m migrations --wait` applies nothing. It ends when the database has all migrations that this code needs. Web
and workers use it if they start at the same time as the migrations.
"""

import sys
import time
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from shared import health, logs
from shared.database import is_infrastructure_error
from shared.settings import settings

LOOK_EVERY_SECONDS: Final = 2.0

log = logs.get_logger("migrations")


def configuration() -> Config:
    """Returns alembic's configuration, which needs no configuration file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def main(arguments: list[str]) -> int:
    logs.configure()
    if arguments not in ([], ["--wait"]):
        log.error("migrations know one option, --wait", arguments=arguments)
        return 1
    if not settings().database_url:
        log.error("migrations need DATABASE_URL")
        return 1
    return _wait() if arguments else _upgrade()


def _upgrade() -> int:
    try:
        command.upgrade(configuration(), "head")
    except (DBAPIError, CommandError) as error:
        log.error("migration failed", error=str(getattr(error, "orig", error)).strip())
        return 1
    return 0


def _wait() -> int:
    """Waits without a time-out until the database is ready, and returns 0. The caller sets a limit if it needs one."""
    last_reason = ""
    while reason := _reason_to_wait():
        if reason != last_reason:
            log.info("waiting for the database", reason=reason)
        last_reason = reason
        time.sleep(LOOK_EVERY_SECONDS)
    return 0


def _reason_to_wait() -> str:
    """Returns the reason why the database is not ready; "" if it is ready."""
    try:
        health.check_server()
    except Exception as error:
        if is_infrastructure_error(error) or _is_not_granted(error):
            return str(getattr(error, "orig", error)).strip() or repr(error)
        raise
    return ""


def _is_not_granted(error: Exception) -> bool:
    """Returns whether the role lacks a privilege. The process waits for it, because the migrations also grant."""
    return getattr(getattr(error, "orig", None), "pgcode", None) == "42501"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
