"""`python -m migrations`: bring the database to the newest migration. Prints what it did; exit code 0 or 1."""

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from shared import logs
from shared.settings import settings

log = logs.get_logger("migrations")


def configuration() -> Config:
    """alembic's configuration, without a file of its own."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def main() -> int:
    logs.configure()
    if not settings().database_url:
        log.error("migrations need DATABASE_URL")
        return 1
    try:
        command.upgrade(configuration(), "head")
    except (DBAPIError, CommandError) as error:
        log.error("migration failed", error=str(getattr(error, "orig", error)).strip())
        return 1
    log.info("migrations are applied")
    return 0


if __name__ == "__main__":
    sys.exit(main())
