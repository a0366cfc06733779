"""Interprets a response of the service: returns its document, or raises the error that it means."""

import json
from decimal import Decimal
from typing import Any, NamedTuple

import urllib3
from urllib3.exceptions import InvalidHeader

from payments_client.errors import InvalidRequest, NotFound, PaymentsApiError, Rejected, UidReused, Unavailable
from payments_client.values import Transaction


class ServiceResponse(NamedTuple):
    """A successful response: its JSON object and the values of its headers."""

    document: dict[str, Any]
    request_id: str
    replayed: bool


def read_answer(response: urllib3.BaseHTTPResponse, request_id: str) -> ServiceResponse:
    """Returns a successful response. Raises the PaymentsApiError that any other response means."""
    status, document = response.status, _document(response.data)
    code = document.get("code", f"http_{status}")
    detail = document.get("detail", f"The response was {status} {response.reason or ''}".strip())
    if status == 429 or status >= 500:
        error = Unavailable(code, detail, status, request_id)
        error.retry_after = _retry_after(response.headers.get("Retry-After"))
        raise error
    if status < 300 and document:
        return ServiceResponse(document, request_id, _replayed(response))
    if status < 300:
        raise Unavailable("not_understood", "The response is not a JSON object.", status, request_id)
    if status == 409 and "transaction" in document:
        raise Rejected(Transaction.of(document["transaction"], _replayed(response)), request_id, detail)
    raise _kind_of(status, code)(code, detail, status, request_id)


def _kind_of(status: int, code: str) -> type[PaymentsApiError]:
    if code == "uid_reused":
        return UidReused
    if status == 404:
        return NotFound
    return InvalidRequest if status in (400, 413, 415, 422) else PaymentsApiError


def _replayed(response: urllib3.BaseHTTPResponse) -> bool:
    return response.headers.get("Idempotency-Replayed") == "true"


def _document(data: bytes) -> dict[str, Any]:
    """Returns the JSON object; an empty one if the body is something else, such as a proxy's error page."""
    try:
        document = json.loads(data, parse_float=Decimal)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _retry_after(header: str | None) -> float:
    try:
        return urllib3.Retry().parse_retry_after(header) if header else 0.0
    except InvalidHeader:
        return 0.0
