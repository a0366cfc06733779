"""Webhooks: every older secret with an end of its own, the end of a delivery's schedule, Idempotency-Key.

The release that runs meanwhile writes `previous_secret` alone. So the new one reads that too, and goes on writing it.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

TABLES = """
CREATE TABLE webhook_secrets (
    webhook_id bigint NOT NULL,
    secret text NOT NULL,
    valid_until timestamptz NOT NULL,
    CONSTRAINT webhook_secrets_pkey PRIMARY KEY (webhook_id, secret)
);
CREATE INDEX webhook_secrets_valid_until ON webhook_secrets (valid_until);
INSERT INTO webhook_secrets (webhook_id, secret, valid_until)
    SELECT id, previous_secret, previous_secret_until FROM webhooks
    WHERE deleted_at IS NULL AND previous_secret IS NOT NULL AND previous_secret_until > clock_timestamp();

ALTER TABLE deliveries ADD COLUMN schedule_ends_at timestamptz;

ALTER TABLE webhooks ADD COLUMN idempotency_key text;
CREATE UNIQUE INDEX webhooks_idempotency_key ON webhooks (idempotency_key)
    WHERE idempotency_key IS NOT NULL AND deleted_at IS NULL;
"""


def upgrade() -> None:
    op.execute(TABLES)
