"""What `verify --record` found: a row each time, so that an alarm can tell when the books were last proved."""

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = """
CREATE TABLE verifications (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT verifications_pkey PRIMARY KEY,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    users bigint NOT NULL,
    entries bigint NOT NULL,
    differences bigint NOT NULL
);
"""


def upgrade() -> None:
    op.execute(TABLES)
