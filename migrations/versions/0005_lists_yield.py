"""Rows of lists yield to single payments: each row says whether it waits with the lists, and two indexes find both kinds.

`bulk` is decided when a row is accepted: it came in a list, or an earlier row of its user still waits with the lists or
is parked, so that no row overtakes an earlier one of its user. Workers of the release before read the new rows, too:
without the old index they sort what their lane has PENDING.
"""

from alembic import op

from migrations.online import build_index, drop_index

revision = "0005"
down_revision = "0004"

WAITING = "WHERE status = 'PENDING' AND parked_at IS NULL"


def upgrade() -> None:
    op.execute("ALTER TABLE transactions ADD COLUMN IF NOT EXISTS bulk boolean NOT NULL DEFAULT false")
    build_index("transactions_pending_lane", f"transactions (lane, bulk, accept_order) {WAITING}")
    build_index("transactions_pending_user", f"transactions (lane, user_id, bulk, accept_order) {WAITING}")
    drop_index("transactions_pending")
