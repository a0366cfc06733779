"""What operators did, as an append-only table; and per user how far `verify` has proved the books."""

from alembic import op

revision = "0009"
down_revision = "0008"

TABLES = """
CREATE TABLE operator_actions (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT operator_actions_pkey PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}'
);
CREATE TRIGGER operator_actions_append_only BEFORE UPDATE OR DELETE ON operator_actions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('operator actions are append-only');
CREATE TRIGGER operator_actions_kept BEFORE TRUNCATE ON operator_actions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('operator actions are append-only');

CREATE TABLE verification_marks (
    user_id bigint NOT NULL CONSTRAINT verification_marks_pkey PRIMARY KEY,
    seq bigint NOT NULL,
    balance bigint NOT NULL,
    history_at timestamptz,
    event_seq bigint NOT NULL
);
ALTER TABLE verifications ADD COLUMN whole boolean NOT NULL DEFAULT true;
"""


def upgrade() -> None:
    op.execute(TABLES)
