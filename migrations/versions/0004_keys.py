"""API keys: of each a name, a scope, and the SHA-256 of its secret."""

from alembic import op

revision = "0004"
down_revision = "0003"

TABLES = """
CREATE TABLE api_keys (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT api_keys_pkey PRIMARY KEY,
    name text NOT NULL CONSTRAINT api_keys_name_check CHECK (char_length(name) BETWEEN 1 AND 64),
    scope text NOT NULL CONSTRAINT api_keys_scope_check CHECK (scope IN ('read', 'write', 'admin')),
    secret_hash bytea NOT NULL CONSTRAINT api_keys_secret_hash_check CHECK (length(secret_hash) = 32),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    revoked_at timestamptz
);
"""


def upgrade() -> None:
    op.execute(TABLES)
