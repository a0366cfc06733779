"""A transaction's whole story, for whoever is asked what became of it."""

from uuid import UUID

from shared.database import transaction
from shared.errors import transaction_not_found
from shared.model import Story
from shared.queries.story import find_story


def get_story(uid: UUID) -> Story:
    """Raises NotFound."""
    with transaction() as connection:
        story = find_story(connection, uid)
    if story is None:
        raise transaction_not_found(uid)
    return story
