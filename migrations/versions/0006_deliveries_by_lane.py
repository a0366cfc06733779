"""Indexes for what is read again and again: a lane's first delivery that has its turn, the keys that are valid."""

from alembic import op

revision = "0006"
down_revision = "0004"

INDEXES = """
CREATE INDEX deliveries_lane ON deliveries ((user_id % 16), event_id) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX api_keys_valid ON api_keys (id) WHERE revoked_at IS NULL;
"""


def upgrade() -> None:
    op.execute(INDEXES)
