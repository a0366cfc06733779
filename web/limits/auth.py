"""Authentication and authorisation: checks the caller's API key, its scope for the address, and its rate limit.

An address that is in no list here needs the widest scope, so a new address stays closed until it is listed.
"""

from typing import Final

from flask import Request

from shared.auth import api_keys
from shared.auth.scopes import Scope, ValidKey
from shared.errors import Refused
from shared.settings import settings
from web.limits.cached_read import CachedRead
from web.limits.rate_limit import RateLimiter

OPEN_ROUTES: Final = ("/livez", "/readyz", "/metrics", "/docs", "/docs/<name>", "/openapi.json")
WRITE_ROUTES: Final = ("/api/user/", "/api/transaction/", "/api/transactions/")
LOOK_UP_ROUTE: Final = "/api/transaction/<uid>"  # a POST that only reads
KEYS_MAX_AGE_SECONDS: Final = 3.0
# Plus READ_TIMEOUT_SECONDS, this is the longest time for which a revoked key still works.
STALE_KEYS_MAX_AGE_SECONDS: Final = 8.0
MAX_API_KEY_CHARACTERS: Final = 100

_keys: Final = CachedRead("the keys", api_keys.read_valid, KEYS_MAX_AGE_SECONDS, "read_keys")
_limiter: Final = RateLimiter()


def scope_needed(method: str, route: str) -> Scope | None:
    """Returns the scope that a request needs; None if it needs no key.

    `route` is the rule as declared, or "" for an address that does not exist.
    """
    if route in OPEN_ROUTES or method == "OPTIONS":
        return None
    if route.startswith("/api/webhook/"):
        return Scope.ADMIN
    if method in ("GET", "HEAD") or route in ("", LOOK_UP_ROUTE):
        return Scope.READ
    return Scope.WRITE if route in WRITE_ROUTES else Scope.ADMIN


def admit(http: Request) -> ValidKey | None:
    """Returns the caller's key; None if no key is needed.

    Raises Refused if the key is missing or invalid, its scope is too small, or the caller is over its rate limit.
    Raises Unavailable if the keys cannot be read.
    """
    needed = scope_needed(http.method, http.url_rule.rule if http.url_rule else "")
    if needed is None:
        return None
    key = _find_key(http, needed) if settings().requires_keys else None
    limit = settings().rate_limit
    if limit and (seconds := _limiter.take(key.id if key else http.remote_addr, limit)):
        raise Refused("rate_limited", f"More than {limit:g} requests a second.", retry_seconds=seconds)
    return key


def read_actor(http: Request, key: ValidKey | None) -> str:
    """Returns the caller's name for the log of operator actions: its key, or its IP address if no key is needed."""
    return f"key {key.id} {key.name}" if key else f"no key, {http.remote_addr}"


def _find_key(http: Request, needed: Scope) -> ValidKey:
    scheme, _, token = http.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Refused("unauthorized", "A key is needed: Authorization: Bearer KEY.")
    parsed = api_keys.parse_key(token.strip()) if len(token) <= MAX_API_KEY_CHARACTERS else None
    # An unknown key may have been created just now, so the keys are read again.
    key = parsed and (_keys.get(STALE_KEYS_MAX_AGE_SECONDS).get(parsed.id) or _keys.get(0).get(parsed.id))
    if not parsed or not key or not api_keys.matches_secret(parsed, key):
        raise Refused("unauthorized", "The key is not valid.")
    if not key.scope.allows(needed):
        raise Refused("insufficient_scope", f"This needs a key of scope {needed}; the scope of yours is {key.scope}.")
    return key
