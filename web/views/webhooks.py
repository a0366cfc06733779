"""The views of webhooks: create, read, delete and test them, rotate a secret, replay events, list dead letters."""

import threading
from typing import Any, Final

from flask import Blueprint, Response, g, request

from shared.errors import Unavailable, webhook_not_found
from shared.money import format_amount
from shared.timestamps import format_instant
from shared.webhooks import manage
from shared.webhooks.model import DeadLetter, DeadLetterKey, NewWebhook, Webhook
from web.http.body import read_json
from web.http.params import DeadLettersQuery, read_id, read_idempotency_key
from web.http.responses import JsonResponse
from web.limits.auth import read_actor
from web.openapi.operation import ApiResponse, documented
from web.serving.loop import in_thread, on_loop
from web.webhook_schemas import (
    DeadLettersOut,
    NewWebhookIn,
    NewWebhookOut,
    ReplayIn,
    SecretOut,
    TrialOut,
    WebhookOut,
    WebhooksOut,
)

blueprint = Blueprint("webhooks", __name__, url_prefix="/api/webhook")

MAX_CONCURRENT_TRIALS: Final = 8

_trials = threading.BoundedSemaphore(MAX_CONCURRENT_TRIALS)  # a slow receiver holds the thread of its test


@blueprint.post("/")
@on_loop
@documented(
    {
        201: ApiResponse(
            NewWebhookOut, "The webhook, with its secret.", ("Location",), optional_headers=("Idempotency-Replayed",)
        )
    },
    body=NewWebhookIn,
    headers=("Idempotency-Key",),
)
def post_webhook() -> Response:
    """Creates a webhook for transactions that are settled from now on. Returns it with its secret."""
    key = read_idempotency_key(request)
    content = read_json(request, NewWebhookIn)
    new = NewWebhook(content.url, content.events, content.threshold)
    webhook, secret, replayed = in_thread(manage.register, new, key and key.stored, read_actor(request, g.key))
    response = JsonResponse({**_content(webhook), "secret": secret}, 201)
    response.headers["Location"] = f"/api/webhook/{webhook.id}/"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@blueprint.get("/")
@documented({200: ApiResponse(WebhooksOut, "The webhooks.")})
def list_webhooks() -> Response:
    """Returns all webhooks."""
    return JsonResponse({"items": [_webhook_to_json(webhook) for webhook in manage.list_all()]})


@blueprint.get("/<webhook_id>/")
@documented({200: ApiResponse(WebhookOut, "The webhook.")})
def get_webhook(webhook_id: str) -> Response:
    """Returns a webhook and its state."""
    return JsonResponse(_webhook_to_json(manage.get(read_id(webhook_id, webhook_not_found))))


@blueprint.delete("/<webhook_id>/")
@documented({204: ApiResponse(None, "The webhook is deleted.")})
def delete_webhook(webhook_id: str) -> Response:
    """Deletes a webhook. Events that are not delivered to it yet are dropped."""
    manage.delete(read_id(webhook_id, webhook_not_found), read_actor(request, g.key))
    return Response(status=204)


@blueprint.post("/<webhook_id>/test")
@documented({200: ApiResponse(TrialOut, "The receiver's response.")}, problems=("overloaded",))
def try_webhook(webhook_id: str) -> Response:
    """Sends one test event (webhook.test) now and returns the result."""
    if not _trials.acquire(blocking=False):
        raise Unavailable("overloaded", "Too many webhooks are being tested. Try again later.")
    try:
        receipt = manage.send_test_event(read_id(webhook_id, webhook_not_found))
    finally:
        _trials.release()
    return JsonResponse({"delivered": receipt.delivered, "status": receipt.status, "error": receipt.error})


@blueprint.post("/<webhook_id>/rotate-secret")
@documented({200: ApiResponse(SecretOut, "The new secret.")}, problems=("too_many_secrets",))
def rotate_secret(webhook_id: str) -> Response:
    """Creates a new secret for a webhook and returns it. The old secret stays valid for 24 hours."""
    secret = manage.rotate_secret(read_id(webhook_id, webhook_not_found), read_actor(request, g.key))
    return JsonResponse({"secret": secret})


@blueprint.post("/<webhook_id>/replay")
@on_loop
@documented(
    {200: ApiResponse(WebhookOut, "The webhook. If it was disabled, it is enabled again.")},
    body=ReplayIn,
    problems=("cursor_ahead",),
)
def replay_webhook(webhook_id: str) -> Response:
    """Sends all events after a cursor again, with the same ids and before newer events. Returns the webhook."""
    numeric_id = read_id(webhook_id, webhook_not_found)
    in_thread(manage.replay, numeric_id, read_json(request, ReplayIn).after, read_actor(request, g.key))
    return JsonResponse(_webhook_to_json(in_thread(manage.get, numeric_id)))


@blueprint.get("/<webhook_id>/dead-letters")
@documented({200: ApiResponse(DeadLettersOut, "A page, in the order of the events.")})
def get_dead_letters(webhook_id: str, query: DeadLettersQuery) -> Response:
    """Returns a page of a webhook's dead letters: deliveries that are no longer tried."""
    page = manage.get_dead_letters(read_id(webhook_id, webhook_not_found), query.cursor, query.limit)
    return JsonResponse(
        {"items": [_dead_letter_to_json(letter) for letter in page.items], "next": _write_key(page.after)}
    )


def _content(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": webhook.events,
        "threshold": format_amount(webhook.threshold),
    }


def _webhook_to_json(webhook: Webhook) -> dict[str, Any]:
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


def _dead_letter_to_json(letter: DeadLetter) -> dict[str, Any]:
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


def _write_key(key: DeadLetterKey | None) -> str | None:
    return key and f"{key.event_id}-{key.position}"
