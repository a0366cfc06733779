"""Why a backdated withdrawal was rejected though the balance covered it: the lowest balance from its instant on.

Stored, because the answer for a uid is the same for ever while the past may still change by late entries. Null in all
other rows. A nullable column without a default or a check: no row is rewritten or read, and the release that runs
meanwhile need not know it.
"""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("ALTER TABLE transactions ADD COLUMN lowest_balance bigint")
