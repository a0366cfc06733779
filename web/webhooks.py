"""Webhooks: add, look up, delete, try out, rotate the secret, replay, see what was given up."""

import threading
from typing import Any, Final

from flask import Blueprint, Response, g, request

from shared import webhooks
from shared.errors import Unavailable, invalid_field, webhook_not_found
from shared.instants import format_instant
from shared.money import format_amount
from shared.queries.letters import DeadLetter, LetterKey
from shared.queries.webhooks import NewWebhook, Webhook
from web.access import read_actor
from web.answers import JsonAnswer
from web.bodies import read_json
from web.loop import in_thread, on_loop
from web.requests import read_id, read_idempotency_key, read_limit
from web.users import DEFAULT_PAGE, LONGEST_PAGE
from web.webhook_schemas import NewWebhookIn, ReplayIn, read_letter_key

blueprint = Blueprint("webhooks", __name__, url_prefix="/api/webhook")

MOST_TRIALS: Final = 8

_trials = threading.BoundedSemaphore(MOST_TRIALS)  # each may hold its thread for as long as a receiver takes


@blueprint.post("/")
@on_loop
def post_webhook() -> Response:
    key = read_idempotency_key(request)
    content = read_json(request, NewWebhookIn)
    new = NewWebhook(content.url, content.events, content.threshold)
    webhook, secret, replayed = in_thread(webhooks.register, new, key and key.stored, read_actor(request, g.key))
    response = JsonAnswer({**_content(webhook), "secret": secret}, 201)
    response.headers["Location"] = f"/api/webhook/{webhook.id}/"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@blueprint.get("/")
def list_webhooks() -> Response:
    return JsonAnswer({"items": [_show(webhook) for webhook in webhooks.list_all()]})


@blueprint.get("/<webhook_id>/")
def get_webhook(webhook_id: str) -> Response:
    return JsonAnswer(_show(webhooks.get(read_id(webhook_id, webhook_not_found))))


@blueprint.delete("/<webhook_id>/")
def delete_webhook(webhook_id: str) -> Response:
    webhooks.delete(read_id(webhook_id, webhook_not_found), read_actor(request, g.key))
    return Response(status=204)


@blueprint.post("/<webhook_id>/test")
def try_webhook(webhook_id: str) -> Response:
    if not _trials.acquire(blocking=False):
        raise Unavailable("overloaded", "Too many webhooks are being tried out.")
    try:
        receipt = webhooks.try_out(read_id(webhook_id, webhook_not_found))
    finally:
        _trials.release()
    return JsonAnswer({"delivered": receipt.delivered, "status": receipt.status, "error": receipt.error})


@blueprint.post("/<webhook_id>/rotate-secret")
def rotate_secret(webhook_id: str) -> Response:
    secret = webhooks.rotate_secret(read_id(webhook_id, webhook_not_found), read_actor(request, g.key))
    return JsonAnswer({"secret": secret})


@blueprint.post("/<webhook_id>/replay")
@on_loop
def replay_webhook(webhook_id: str) -> Response:
    known = read_id(webhook_id, webhook_not_found)
    in_thread(webhooks.replay, known, read_json(request, ReplayIn).after, read_actor(request, g.key))
    return JsonAnswer(_show(in_thread(webhooks.get, known)))


@blueprint.get("/<webhook_id>/dead-letters")
def get_dead_letters(webhook_id: str) -> Response:
    try:
        after = read_letter_key(request.args.get("cursor", ""))
    except ValueError as error:
        raise invalid_field("cursor", str(error)) from None
    limit = read_limit(request, DEFAULT_PAGE, LONGEST_PAGE)
    page = webhooks.get_dead_letters(read_id(webhook_id, webhook_not_found), after, limit)
    return JsonAnswer({"items": [_show_letter(letter) for letter in page.items], "next": _write_key(page.after)})


def _content(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": webhook.events,
        "threshold": format_amount(webhook.threshold),
    }


def _show(webhook: Webhook) -> dict[str, Any]:
    instants = {
        "created_at": webhook.created_at,
        "failing_since": webhook.failing_since,
        "disabled_at": webhook.disabled_at,
    }
    return {
        **_content(webhook),
        **{name: instant and format_instant(instant) for name, instant in instants.items()},
        "disabled_reason": webhook.disabled_reason,
    }


def _show_letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "event_id": letter.event_id,
        "type": letter.type,
        "user_id": letter.user_id,
        "user_seq": letter.user_seq,
        "balance": format_amount(letter.balance),
        "attempts": letter.attempts,
        "error": letter.last_error,
        "occurred_at": format_instant(letter.occurred_at),
        "dead_at": format_instant(letter.dead_at),
    }


def _write_key(key: LetterKey | None) -> str | None:
    return key and f"{key.event_id}-{key.position}"
