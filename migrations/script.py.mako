"""${message}

It must be compatible with the release that runs during the migration: add first, use later, remove last.
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    pass
