"""Add a user. With a key of the client's own, a repeat finds the same user.

The key is stored in one text with the API key that sent it, so that one unique index serves all of them, the keys that
an older release stored alone, and that release itself while both run. A repeat of a key that is stored alone finds its
user: whose key it was is not known.
"""

from typing import NamedTuple

from shared.database import transaction
from shared.errors import Conflict
from shared.model import User
from shared.queries import users

NO_OWNER = 0


class OwnedKey(NamedTuple):
    """An Idempotency-Key and the id of the API key that sent it, NO_OWNER where the service asks for none."""

    owner_id: int
    key: str

    @property
    def stored(self) -> str:
        """The text that is stored. No key holds a tab, so no two owners' keys are alike."""
        return f"{self.owner_id}\t{self.key}"


def register(name: str, key: OwnedKey | None = None) -> tuple[User, bool]:
    """Returns the user, and whether an earlier request with this key had made it.

    Raises Conflict (key_reused) where the key stands for a user of another name.
    """
    with transaction() as connection:
        if key is None:
            return users.insert_user(connection, name), False
        new = users.insert_user_with_key(connection, name, key.stored, key.key)
        user = new or users.get_user_by_key(connection, key.stored, key.key)
    if user.name != name:
        raise Conflict("key_reused", "This Idempotency-Key has made a user with another name.")
    return user, new is None
