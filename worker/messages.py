"""Which messages in our queues are ours. Everything else is dropped before Celery sees it: junk would end the worker.

What a dropped message held is not logged: nobody knows whose it is. A lost ring costs a second.
"""

import binascii
from base64 import b64decode
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared import doorbell, metrics
from shared.logs import get_logger
from shared.model import LANES

MAX_MESSAGE_BYTES: Final = 64 << 10  # ours have about one thousand

log = get_logger("messages")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Headers(_Strict):
    """No message of ours waits for an instant, expires or has a time limit: Celery would keep it, or fail on it."""

    task: str
    id: str
    request_id: str | None = None
    eta: None = None
    expires: None = None
    timelimit: list[None] | None = None
    retries: Literal[0] = 0


class _Properties(_Strict):
    delivery_tag: str
    delivery_info: dict[str, Any]
    body_encoding: Literal["base64"]


class _Envelope(_Strict):
    """What kombu needs of any message."""

    body: str
    properties: _Properties


class _Message(_Envelope):
    headers: _Headers
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")


_Lane = Annotated[int, Field(ge=0, lt=LANES)]
_Lanes = Annotated[list[_Lane], Field(max_length=LANES)]  # none: an invitation to drain all
_WebhookId = Annotated[int, Field(ge=1, lt=2**63)]
_Slot = Annotated[int, Field(ge=0, lt=1000)]
_NoKeywords = Annotated[dict[str, Any], Field(max_length=0)]
_NothingAfterwards = dict[str, None]  # callbacks, errbacks, chain, chord


class _Kind(NamedTuple):
    """The task that a queue is for, and its arguments as Celery sends them."""

    task: str
    arguments: TypeAdapter[Any]


_KINDS: Final = {
    doorbell.SETTLE_QUEUE: _Kind(
        doorbell.SETTLE_TASK,
        TypeAdapter(tuple[tuple[_Lanes], _NoKeywords, _NothingAfterwards], config=ConfigDict(strict=True)),
    ),
    doorbell.NOTIFY_QUEUE: _Kind(
        doorbell.NOTIFY_TASK,
        TypeAdapter(tuple[tuple[_WebhookId, _Slot], _NoKeywords, _NothingAfterwards], config=ConfigDict(strict=True)),
    ),
}


def accept(queue: str, text: bytes) -> bool:
    """Returns whether what was taken from a queue is a message for it; counts and logs what is dropped.

    Queues that are not ours (Celery's answers to control commands) are not judged.
    """
    kind = _KINDS.get(queue)
    reason = _reason_to_drop(kind, text) if kind else None
    if reason:
        drop(queue, reason)
    return reason is None


def accept_broadcast(channel: bytes, text: bytes) -> bool:
    """As `accept`, for events and control commands, of which only the envelope is judged."""
    try:
        b64decode(_Envelope.model_validate_json(text).body, validate=True)
    except ValidationError as error:
        reason = _describe(error)
    except binascii.Error:
        reason = "body: not base64"
    else:
        return True
    drop(channel.decode("utf-8", "replace"), reason)
    return False


def drop(source: str, reason: str) -> None:
    """Count and log a message that is none of ours. `reason` holds nothing of its content."""
    metrics.MESSAGES_DROPPED.inc()
    log.warning("message dropped", queue=source, reason=reason)


def _reason_to_drop(kind: _Kind, text: bytes) -> str | None:
    if len(text) > MAX_MESSAGE_BYTES:
        return f"{len(text)} bytes"
    try:
        message = _Message.model_validate_json(text)
        if message.headers.task != kind.task:
            return "headers.task: another task"
        kind.arguments.validate_json(b64decode(message.body, validate=True))
    except ValidationError as error:
        return _describe(error)
    except binascii.Error:
        return "body: not base64"
    return None


def _describe(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['type']}" if place else first["type"]
