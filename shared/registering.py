"""Add a user. With a key of the client's own, a repeat finds the same user."""

from typing import NamedTuple

from shared.database import transaction
from shared.errors import Conflict
from shared.queries import users
from shared.queries.users import User

NO_OWNER = 0


class OwnedKey(NamedTuple):
    """An Idempotency-Key and the id of the API key that sent it, NO_OWNER where the service asks for none."""

    owner_id: int
    key: str

    @property
    def stored(self) -> str:
        """The text that is stored. No key holds a tab, so no two owners' keys are alike."""
        return f"{self.owner_id}\t{self.key}"


def register(name: str, key: str | None = None) -> tuple[User, bool]:
    """The user, and whether an earlier request with this key had made it.

    Raises Conflict (key_reused) where the key stands for a user of another name.
    """
    with transaction() as connection:
        new = users.insert_user(connection, name, key)
        user = new or users.get_user_by_key(connection, key)
    if user.name != name:
        raise Conflict("key_reused", "This Idempotency-Key has made a user with another name.")
    return user, new is None
