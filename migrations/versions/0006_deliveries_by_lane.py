"""An index that finds a lane's first delivery that has its turn: no event from there on may be taken away."""

from alembic import op

revision = "0006"
down_revision = "0004"

INDEXES = """
CREATE INDEX deliveries_lane ON deliveries ((user_id % 16), event_id) WHERE next_attempt_at IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(INDEXES)
