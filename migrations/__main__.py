"""`python -m migrations`: bring the database to the newest migration. Prints what it did; exit code 0 or 1.

A database that a newer release has migrated stays as it is (exit code 0): the code runs on a newer schema.

`python -m migrations --wait` applies none: it ends when the database has those that this code needs, which is what a
process waits for that is started beside them.
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
    """alembic's configuration, without a file of its own."""
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
    """For ever, if need be: how long is too long is for whoever started us to say."""
    told = ""
    while reason := _reason_to_wait():
        if reason != told:
            log.info("waiting for the database", reason=reason)
        told = reason
        time.sleep(LOOK_EVERY_SECONDS)
    return 0


def _reason_to_wait() -> str:
    """Empty where there is none."""
    try:
        health.check_server()
    except Exception as error:
        if is_infrastructure_error(error) or _is_not_granted(error):
            return str(getattr(error, "orig", error)).strip() or repr(error)
        raise
    return ""


def _is_not_granted(error: Exception) -> bool:
    """What migrates also grants, so a role that is new to an older database has to wait for that, too."""
    return getattr(getattr(error, "orig", None), "pgcode", None) == "42501"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
