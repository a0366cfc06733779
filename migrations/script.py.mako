"""${message}

Compatible with the release that is running while it is applied: add first, use later, remove last.
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    pass
