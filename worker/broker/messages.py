"""Validates the messages in our queues. Invalid ones are dropped before Celery reads them, because they would end the worker.

The content of a dropped message is not logged, because it may be confidential. If a ring is dropped, the sweep settles
the payment a second later.
"""

import binascii
from base64 import b64decode
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared import metrics
from shared.logs import get_logger
from shared.payments import doorbell
from shared.payments.model import LANES

MAX_MESSAGE_BYTES: Final = 64 << 10  # valid ones have about 1000

log = get_logger("messages")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Headers(_Strict):
    """Headers without a start time, expiry or time limit. Celery would hold back such a message, or fail on it."""

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
    """The fields that kombu needs in every message."""

    body: str
    properties: _Properties


class _Message(_Envelope):
    headers: _Headers
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")


_Lane = Annotated[int, Field(ge=0, lt=LANES)]
_Lanes = Annotated[list[_Lane], Field(max_length=LANES)]  # empty: an invitation to drain all lanes
_WebhookId = Annotated[int, Field(ge=1, lt=2**63)]
_Slot = Annotated[int, Field(ge=0, lt=1000)]
_NoKeywords = Annotated[dict[str, Any], Field(max_length=0)]
_NothingAfterwards = dict[str, None]  # callbacks, errbacks, chain, chord


class _Kind(NamedTuple):
    """The task of a queue, and its arguments in the format of Celery."""

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
    """Returns whether a text from a queue is a valid message. Counts and logs an invalid one.

    All messages of other queues (Celery's replies to control commands) are valid.
    """
    kind = _KINDS.get(queue)
    reason = _reason_to_drop(kind, text) if kind else None
    if reason:
        drop(queue, reason)
    return reason is None


def accept_broadcast(channel: bytes, text: bytes) -> bool:
    """Returns whether an event or control command has a valid envelope. Counts and logs an invalid one."""
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
    """Counts and logs an invalid message. `reason` must not hold any of its content."""
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
