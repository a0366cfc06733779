"""Everything stored about one transaction, so that an operator can explain its state."""

from uuid import UUID

from shared.database import transaction
from shared.errors import transaction_not_found
from shared.model import Story
from shared.queries.story import find_story


def get_story(uid: UUID) -> Story:
    """Returns a transaction with its user, entry, event and queue position. Raises NotFound if the uid is unknown."""
    with transaction() as connection:
        story = find_story(connection, uid)
    if story is None:
        raise transaction_not_found(uid)
    return story
