"""API keys as callers and operators know them, and what a key allows: each scope allows all that the one before it does."""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class Scope(StrEnum):
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def allows(self, needed: "Scope") -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(needed)


class ApiKey(NamedTuple):
    """A key without what it is known by."""

    id: int
    name: str
    scope: Scope
    created_at: datetime
    revoked_at: datetime | None


class ValidKey(NamedTuple):
    """What a caller who shows this key is, and the SHA-256 of its secret."""

    id: int
    name: str
    scope: Scope
    secret_hash: bytes
