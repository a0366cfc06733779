"""Management of webhooks: register, read, delete, test, rotate the secret, replay, and list dead letters.

A secret is returned when it is created, and again only to a repeat with the same Idempotency-Key. It is stored in clear
text, because signing needs it: anyone who can read the database can sign.
"""

import math
import secrets
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from shared import operator_actions
from shared.database import autocommit, set_statement_timeout, transaction
from shared.errors import Conflict, Invalid, Refused, Unavailable, cursor_ahead, invalid_field, webhook_not_found
from shared.operator_actions import SERVICE
from shared.payments.model import LANES
from shared.payments.queries.events import is_ahead
from shared.server import read_clock
from shared.settings import settings
from shared.timestamps import format_instant
from shared.webhooks import transport
from shared.webhooks.model import DeadLetter, DeadLetterKey, NewWebhook, Webhook, WebhookBacklog
from shared.webhooks.queries import dead_letters as dead_letter_queries
from shared.webhooks.queries import webhooks
from shared.webhooks.target_url import is_local_name, parse_target_url
from shared.webhooks.transport import Message, Receipt

WEBHOOK_SECRET_BYTES: Final = 32
OLDER_SECRET_SECONDS: Final = 24 * 3600.0
MAX_OLDER_SECRETS: Final = 9  # each one adds a signature to every request
REPLAY_TIMEOUT_SECONDS: Final = 20
RESOLVE_TIMEOUT_SECONDS: Final = 2.0
TEST_EVENT_TYPE: Final = "webhook.test"


class DeadLetterPage(NamedTuple):
    """A page of dead letters. `after` is the cursor of the next page, None on the last one."""

    items: list[DeadLetter]
    after: DeadLetterKey | None


class RegisteredWebhook(NamedTuple):
    """A webhook and its current secret. `replayed`: an earlier request with the same key has registered it."""

    webhook: Webhook
    secret: str
    replayed: bool


def register(new: NewWebhook, key: str | None = None, actor: str = SERVICE) -> RegisteredWebhook:
    """Adds a webhook and returns it, or returns the one that was added with this Idempotency-Key (in its stored form).

    Raises Invalid if the URL is not allowed, Conflict (key_reused) if the key belongs to a webhook of other content, and
    Unavailable if the webhook of the key is being deleted.
    """
    if key is not None and (registered := _find_registered(new, key)):
        return registered
    _check_url(new.url)
    secret = _new_secret()
    with transaction() as connection:
        webhook = webhooks.insert_webhook(connection, new, secret, key, LANES)
        if webhook:
            host = parse_target_url(new.url).header  # a path may hold a secret
            operator_actions.record(connection, actor, "webhook.create", webhook.id, host=host, events=list(new.events))
    if webhook:
        return RegisteredWebhook(webhook, secret, replayed=False)
    if key is not None and (registered := _find_registered(new, key)):  # a concurrent request was faster
        return registered
    raise Unavailable("overloaded", "The webhook of this Idempotency-Key is being deleted. Send the request again.")


def _find_registered(new: NewWebhook, key: str) -> RegisteredWebhook | None:
    """Returns the webhook of an Idempotency-Key, or None. Raises Conflict (key_reused) if its content differs."""
    with autocommit() as connection:
        stored = webhooks.find_by_key(connection, key)
    if stored is None:
        return None
    webhook, secret = stored
    if (webhook.url, set(webhook.events), webhook.threshold) != (new.url, set(new.events), new.threshold):
        raise Conflict("key_reused", "This Idempotency-Key has added a webhook of other content.")
    return RegisteredWebhook(webhook, secret, replayed=True)


def get_webhook_backlog() -> WebhookBacklog:
    """Returns the delay of deliveries in seconds, and the numbers of pending deliveries, dead letters and disabled webhooks."""
    with autocommit() as connection:
        return dead_letter_queries.read_webhook_backlog(connection)


def list_all() -> list[Webhook]:
    """Returns all webhooks that are not deleted, in the order of their ids, without secrets."""
    with autocommit() as connection:
        return webhooks.list_webhooks(connection)


def get(webhook_id: int) -> Webhook:
    """Returns a webhook. Raises NotFound if there is none, or if the number cannot be an id."""
    with autocommit() as connection:
        webhook = webhooks.find_webhook(connection, webhook_id) if 0 < webhook_id < 2**63 else None
    if webhook is None:
        raise webhook_not_found(webhook_id)
    return webhook


def delete(webhook_id: int, actor: str = SERVICE) -> None:
    """Deletes a webhook and its secrets. Its deliveries are pruned later. Raises NotFound if there is none."""
    get(webhook_id)
    with transaction() as connection:
        if webhooks.delete_webhook(connection, webhook_id):
            operator_actions.record(connection, actor, "webhook.delete", webhook_id)


def rotate_secret(webhook_id: int, actor: str = SERVICE) -> str:
    """Sets a new secret and returns it. Each older secret stays valid for 24 hours after its own rotation.

    Raises NotFound if there is no such webhook, Refused (too_many_secrets) if MAX_OLDER_SECRETS are still valid.
    """
    get(webhook_id)
    secret = _new_secret()
    with transaction() as connection:
        if not webhooks.lock_webhook(connection, webhook_id):
            raise webhook_not_found(webhook_id)
        older = webhooks.rotate_secret(connection, webhook_id, secret, OLDER_SECRET_SECONDS)
        if older.valid > MAX_OLDER_SECRETS:  # raised inside the transaction, which rolls the rotation back
            raise Refused(
                "too_many_secrets",
                f"{MAX_OLDER_SECRETS} older secrets are still valid, each for a day from its rotation.",
                retry_seconds=math.ceil(older.seconds),
            )
        operator_actions.record(connection, actor, "webhook.rotate_secret", webhook_id)
    return secret


def replay(webhook_id: int, through: Sequence[int], actor: str = SERVICE) -> None:
    """Delivers all events again that follow the given ones, and enables the webhook if it is disabled.

    `through` holds one event id for each lane. Raises NotFound if there is no such webhook, Conflict if an id is ahead
    of the newest event.
    """
    get(webhook_id)
    with transaction() as connection:
        if is_ahead(connection, through):
            raise cursor_ahead()
        set_statement_timeout(connection, REPLAY_TIMEOUT_SECONDS)
        webhooks.rewind_webhook(connection, webhook_id, through)
        webhooks.enable_webhook(connection, webhook_id)
        operator_actions.record(connection, actor, "webhook.replay", webhook_id, after=list(through))


def get_dead_letters(webhook_id: int, after: DeadLetterKey | None, limit: int) -> DeadLetterPage:
    """Returns a page of dead letters, in the order of the events. Raises NotFound if there is no such webhook."""
    get(webhook_id)
    with autocommit() as connection:
        dead_letters = dead_letter_queries.read_dead_letters(connection, webhook_id, after, limit + 1)
    items = dead_letters[:limit]
    return DeadLetterPage(items, items[-1].key if len(dead_letters) > limit else None)


def send_test_event(webhook_id: int) -> Receipt:
    """Sends a test event once, now, and returns the receipt. Raises NotFound if there is no such webhook."""
    webhook = get(webhook_id)
    with transaction() as connection:
        valid, moment = webhooks.get_secrets(connection, webhook_id), read_clock(connection)
    body = make_test_body(webhook_id, moment)
    return transport.send(webhook.url, valid, Message(f"test_{webhook_id}_{secrets.token_hex(8)}", body))


def make_test_body(webhook_id: int, moment: datetime) -> str:
    """Returns the body of a test event. `moment` is UTC."""
    return transport.write_body(TEST_EVENT_TYPE, format_instant(moment), {"webhook_id": webhook_id})


def _new_secret() -> str:
    return "whsec_" + b64encode(secrets.token_bytes(WEBHOOK_SECRET_BYTES)).decode()


def _check_url(url: str) -> None:
    """Raises Invalid if the URL is not allowed. A name that does not resolve now is checked at each delivery."""
    try:
        receiver = parse_target_url(url)
    except ValueError as error:
        raise invalid_field("url", str(error)) from None
    if settings().webhook_allow_private:
        return
    if receiver.address is None and is_local_name(receiver.host):
        raise _not_public()
    try:
        transport.find_addresses(receiver, RESOLVE_TIMEOUT_SECONDS)
    except transport.NotPublic:
        raise _not_public() from None
    except OSError:
        return


def _not_public() -> Invalid:
    return invalid_field("url", "must lead to the public internet, not to a private or local address")
