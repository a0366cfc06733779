"""Domain types of API keys and their scopes. Each scope includes the one before it."""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class Scope(StrEnum):
    """The permissions of a key, from the least to the most."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def allows(self, needed: "Scope") -> bool:
        """Returns whether this scope includes the needed one."""
        order = list(Scope)
        return order.index(self) >= order.index(needed)


class ApiKey(NamedTuple):
    """A key without its secret. Instants are UTC."""

    id: int
    name: str
    scope: Scope
    created_at: datetime
    revoked_at: datetime | None


class ValidKey(NamedTuple):
    """A key that is not revoked, with the SHA-256 of its secret."""

    id: int
    name: str
    scope: Scope
    secret_hash: bytes
