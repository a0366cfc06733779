"""An index that finds a lane's first delivery that has its turn: no event from there on may be taken away."""

from migrations.online import build_index

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    build_index("deliveries_lane", "deliveries ((user_id % 16), event_id) WHERE next_attempt_at IS NOT NULL")
