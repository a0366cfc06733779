"""Adding users: with a key of the client's own, a repeat finds the same user."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from shared.database import transaction
from shared.errors import Conflict
from shared.payments.reads import get_user
from shared.payments.users import NO_OWNER, OwnedKey, register

pytestmark = pytest.mark.integration


def test_a_user_begins_with_nothing() -> None:
    user, replayed = register("Ann")
    assert (user.name, user.balance, replayed) == ("Ann", 0, False)
    assert get_user(user.id) == user


def test_without_a_key_each_request_makes_a_user() -> None:
    assert register("Ann")[0].id != register("Ann")[0].id


def test_a_repeat_with_the_same_key_finds_the_same_user() -> None:
    key = OwnedKey(5, str(uuid4()))
    assert register("Ann", key)[0] == register("Ann", key)[0]
    assert register("Ann", key)[1] is True


def test_the_same_key_with_another_name_is_refused() -> None:
    register("Ann", key := OwnedKey(5, str(uuid4())))
    with pytest.raises(Conflict) as raised:
        register("Bob", key)
    assert raised.value.code == "key_reused"


def test_one_key_sent_many_times_at_once_makes_one_user() -> None:
    key = OwnedKey(5, str(uuid4()))
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: register("Ann", key), range(20)))
    assert len({user.id for user, _ in answers}) == 1
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 19


def test_the_same_key_of_another_owner_is_another_key() -> None:
    key = str(uuid4())
    owners = (NO_OWNER, 1, 11)
    users = [register(f"Ann {owner}", OwnedKey(owner, key)) for owner in owners]
    assert len({user.id for user, _ in users}) == len(owners)
    assert [register(f"Ann {owner}", OwnedKey(owner, key)) for owner in owners] == [(user, True) for user, _ in users]


def test_a_key_that_an_older_release_stored_finds_its_user() -> None:
    key = str(uuid4())
    with transaction() as connection:
        statement = text("INSERT INTO users (name, idempotency_key) VALUES ('Ann', :key) RETURNING id")
        known = connection.scalar(statement, {"key": key})
    for owner in (NO_OWNER, 5):
        user, replayed = register("Ann", OwnedKey(owner, key))
        assert (user.id, replayed) == (known, True)
    with pytest.raises(Conflict):
        register("Bob", OwnedKey(5, key))


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_the_database_refuses_empty_and_long_names(name: str) -> None:
    with pytest.raises(IntegrityError, match="users_name_check"):
        register(name)
