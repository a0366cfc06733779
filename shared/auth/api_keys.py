"""API keys: create, list, revoke and check them.

A key is `pay_<id>_<secret>`. Only the SHA-256 of the secret is stored, so a key cannot be read back. The secret has 256
random bits, so a slow hash would not make it safer.
"""

import re
import secrets
from hashlib import sha256
from hmac import compare_digest
from typing import Final, NamedTuple

from shared import operator_actions
from shared.auth import queries
from shared.auth.scopes import ApiKey, Scope, ValidKey
from shared.database import autocommit, transaction
from shared.operator_actions import SERVICE

KEY_SECRET_BYTES: Final = 32
KEY_NAME_PATTERN: Final = "[A-Za-z0-9._-]{1,64}"
_KEY = re.compile(r"pay_([0-9]{1,18})_([A-Za-z0-9_-]{43})", re.ASCII)


class ParsedKey(NamedTuple):
    """The parts of a key that a caller sent."""

    id: int
    secret: str


def create(name: str, scope: Scope, actor: str = SERVICE) -> tuple[int, str]:
    """Creates a key. Returns its id and the key itself, which is never returned again.

    Raises ValueError if the name is not allowed.
    """
    if not re.fullmatch(KEY_NAME_PATTERN, name, re.ASCII):
        raise ValueError("a key's name has 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    secret = secrets.token_urlsafe(KEY_SECRET_BYTES)
    with transaction() as connection:
        key_id = queries.insert_key(connection, name, scope, _hash(secret))
        operator_actions.record(connection, actor, "key.create", key_id, name=name, scope=scope)
    return key_id, f"pay_{key_id}_{secret}"


def list_all() -> list[ApiKey]:
    """Returns all keys, revoked ones too, in the order of their ids."""
    with autocommit() as connection:
        return queries.list_keys(connection)


def revoke(key_id: int, actor: str = SERVICE) -> bool:
    """Revokes a key, which takes effect within 10 seconds. Returns whether there is such a key."""
    with transaction() as connection:
        is_known = 0 < key_id < 2**63 and queries.revoke_key(connection, key_id)
        if is_known:
            operator_actions.record(connection, actor, "key.revoke", key_id)
        return is_known


def read_valid() -> dict[int, ValidKey]:
    """Returns the keys that are not revoked, by id."""
    with autocommit() as connection:
        return {key.id: key for key in queries.read_valid(connection)}


def parse_key(key: str) -> ParsedKey | None:
    """Returns the parts of a key, or None if the text does not have the form of a key."""
    match = _KEY.fullmatch(key)
    return ParsedKey(int(match[1]), match[2]) if match else None


def matches_secret(parsed: ParsedKey, key: ValidKey) -> bool:
    """Returns whether the secret belongs to the key, in constant time."""
    return compare_digest(_hash(parsed.secret), key.secret_hash)


def _hash(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
