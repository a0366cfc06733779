"""Registers users. A repeat with the same Idempotency-Key returns the same user.

The stored text joins the Idempotency-Key and the id of the API key that sent it. So one unique index also serves keys
that an older release stored without an id, and that release while both run. Any caller's repeat of such a key finds its
user, because the owner is not known.
"""

from typing import NamedTuple

from shared.database import transaction
from shared.errors import Conflict
from shared.payments.model import User
from shared.payments.queries import users

NO_OWNER = 0


class OwnedKey(NamedTuple):
    """An Idempotency-Key and the id of the API key that sent it (NO_OWNER if the service requires no API keys)."""

    owner_id: int
    key: str

    @property
    def stored(self) -> str:
        """Returns the stored text. An Idempotency-Key holds no tab, so the texts of two owners always differ."""
        return f"{self.owner_id}\t{self.key}"


def register(name: str, key: OwnedKey | None = None) -> tuple[User, bool]:
    """Returns the user, and whether an earlier request with this key has created it.

    Raises Conflict (key_reused) if the key belongs to a user with another name.
    """
    with transaction() as connection:
        if key is None:
            return users.insert_user(connection, name), False
        new = users.insert_user_with_key(connection, name, key.stored, key.key)
        user = new or users.get_user_by_key(connection, key.stored, key.key)
    if user.name != name:
        raise Conflict("key_reused", "This Idempotency-Key has made a user with another name.")
    return user, new is None
