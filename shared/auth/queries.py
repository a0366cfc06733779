"""Statements on API keys."""

from sqlalchemy import Connection, text

from shared.auth.scopes import ApiKey, Scope, ValidKey

_INSERT = text("""
    INSERT INTO api_keys (name, scope, secret_hash) VALUES (:name, :scope, :secret_hash) RETURNING id
""")
_LIST = text("SELECT id, name, scope, created_at, revoked_at FROM api_keys ORDER BY id")
_REVOKE = text("""
    UPDATE api_keys SET revoked_at = coalesce(revoked_at, clock_timestamp()) WHERE id = :key_id
""")
_READ_VALID = text("SELECT id, name, scope, secret_hash FROM api_keys WHERE revoked_at IS NULL")


def insert_key(connection: Connection, name: str, scope: Scope, secret_hash: bytes) -> int:
    """Adds a key and returns its id."""
    values = {"name": name, "scope": scope, "secret_hash": secret_hash}
    key_id: int = connection.execute(_INSERT, values).scalar_one()
    return key_id


def list_keys(connection: Connection) -> list[ApiKey]:
    """Returns all keys, revoked ones too, in the order of their ids."""
    return [ApiKey(r.id, r.name, Scope(r.scope), r.created_at, r.revoked_at) for r in connection.execute(_LIST)]


def revoke_key(connection: Connection, key_id: int) -> bool:
    """Revokes a key; an earlier revocation keeps its instant. Returns whether there is such a key."""
    return connection.execute(_REVOKE, {"key_id": key_id}).rowcount == 1


def read_valid(connection: Connection) -> list[ValidKey]:
    """Returns the keys that are not revoked."""
    return [ValidKey(r.id, r.name, Scope(r.scope), bytes(r.secret_hash)) for r in connection.execute(_READ_VALID)]
