"""The part of the table of operations that is about webhooks."""

from typing import Final

from web import webhook_schemas as schemas
from web.operations import READ, WRITE, Answer, Operation

_ONE: Final = "/api/webhook/{webhook_id}/"
_BARE: Final = f"webhook_not_found {READ}"

WEBHOOK_OPERATIONS: Final = (
    Operation(
        *("post_webhook", "post", "/api/webhook/", "Add a webhook: it is told of what is settled from now on"),
        {201: Answer(schemas.NewWebhookOut, "The webhook, with its secret", "Location Idempotency-Replayed?")},
        parameters="Idempotency-Key",
        codes=f"key_reused {WRITE}",
        body=schemas.NewWebhookIn,
    ),
    Operation(
        *("list_webhooks", "get", "/api/webhook/", "All webhooks"),
        {200: Answer(schemas.WebhooksOut, "The webhooks")},
        codes=READ,
    ),
    Operation(
        *("get_webhook", "get", _ONE, "A webhook as it stands"),
        {200: Answer(schemas.WebhookOut, "The webhook")},
        parameters="webhook_id",
        codes=_BARE,
    ),
    Operation(
        *("delete_webhook", "delete", _ONE, "Delete a webhook, with what it was still to be told"),
        {204: Answer(None, "It is gone")},
        parameters="webhook_id",
        codes=_BARE,
    ),
    Operation(
        *("try_webhook", "post", f"{_ONE}test", "Send a test event (webhook.test) now, once, and tell how it went"),
        {200: Answer(schemas.TrialOut, "How it went")},
        parameters="webhook_id",
        codes=f"overloaded {_BARE}",
    ),
    Operation(
        *("rotate_secret", "post", f"{_ONE}rotate-secret"),
        "A new secret; each older one stays valid for a day from its own rotation",
        {200: Answer(schemas.SecretOut, "The new secret")},
        parameters="webhook_id",
        codes=f"too_many_secrets {_BARE}",
    ),
    Operation(
        *("replay_webhook", "post", f"{_ONE}replay"),
        "Tell again all that came after a cursor, under the same ids; later events wait for it",
        {200: Answer(schemas.WebhookOut, "The webhook, switched on again if it was off")},
        parameters="webhook_id",
        codes=f"webhook_not_found cursor_ahead {WRITE}",
        body=schemas.ReplayIn,
    ),
    Operation(
        *("get_dead_letters", "get", f"{_ONE}dead-letters", "What was given up"),
        {200: Answer(schemas.DeadLettersOut, "A page, in the order of the events")},
        parameters="webhook_id limit letter_cursor",
        codes=_BARE,
    ),
)
