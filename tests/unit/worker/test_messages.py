"""What is no message of ours is dropped for a reason that says nothing of its content."""

import json

import pytest

from tests.faults.refusals import JUNK, message
from worker.broker import messages

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_dropped_and_counted_in_each_queue(name: str) -> None:
    before = messages.metrics.MESSAGES_DROPPED._value.get()
    assert not messages.accept("settle", JUNK[name])
    assert not messages.accept("notify", JUNK[name])
    assert messages.metrics.MESSAGES_DROPPED._value.get() == before + 2


def test_a_message_of_ours_is_taken_from_its_own_queue_alone() -> None:
    settle = json.dumps(message()).encode()
    notify = json.dumps(message("notify", [[7, 0], {}, {"callbacks": None}])).encode()
    assert messages.accept("settle", settle)
    assert messages.accept("settle", json.dumps(message(body=[[[]], {}, {}])).encode()), "an invitation"
    assert messages.accept("notify", notify)
    assert not messages.accept("notify", settle)
    assert not messages.accept("settle", notify)


def test_what_a_later_release_adds_to_a_message_does_not_matter() -> None:
    assert messages.accept("settle", json.dumps({**message(stamps={"new": 1}), "new": [1]}).encode())


def test_answers_to_control_commands_are_not_judged() -> None:
    assert messages.accept("1234.reply.celery.pidbox", b"anything")


@pytest.mark.parametrize(
    "text", [b"null", b"[]", b"{}", b"{", b"\xff", json.dumps({**message(), "body": "%%%"}).encode()]
)
def test_a_broadcast_needs_an_envelope(text: bytes) -> None:
    assert messages.accept_broadcast(b"celeryev", json.dumps(message("any task")).encode())
    assert not messages.accept_broadcast(b"celeryev", text)
