"""Add a user. With a key of the client's own, a repeat finds the same user."""

from shared.database import transaction
from shared.errors import Conflict
from shared.queries import users
from shared.queries.users import User


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
