"""Users: add one, look one up, the balance, the statement."""

import csv
import io
from typing import Any, Final
from urllib.parse import urlencode

from flask import Blueprint, Response, request

from shared import history
from shared.errors import user_not_found
from shared.instants import format_instant
from shared.money import format_amount
from shared.queries.statement import Filter
from shared.registering import register
from shared.showing import show_transaction
from shared.status import Status, Type
from web.answers import JsonAnswer
from web.bodies import read_json
from web.requests import (
    check_names,
    read_cursor,
    read_id,
    read_idempotency_key,
    read_instant,
    read_limit,
    read_word,
    write_cursor,
)
from web.schemas import NewUser, TransactionOut, show_user

blueprint = Blueprint("users", __name__, url_prefix="/api/user")

DEFAULT_PAGE: Final = 100
LONGEST_PAGE: Final = 1000


@blueprint.post("/")
def post_user() -> Response:
    check_names(request, ())
    key = read_idempotency_key(request)
    user, replayed = register(read_json(request, NewUser).name, key and key.key)
    response = JsonAnswer(show_user(user), 201)
    response.headers["Location"] = f"/api/user/{user.id}/"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@blueprint.get("/<user_id>/")
def get_user(user_id: str) -> Response:
    check_names(request, ())
    user = history.get_user(read_id(user_id, user_not_found))
    return JsonAnswer({**show_user(user), "balance": format_amount(user.balance)})


@blueprint.get("/<user_id>/balance/")
def get_balance(user_id: str) -> Response:
    check_names(request, ("date",))
    found = history.get_balance(read_id(user_id, user_not_found), read_instant(request, "date"))
    return JsonAnswer(
        {
            "user_id": found.user_id,
            "balance": format_amount(found.balance),
            "date": format_instant(found.instant),
        }
    )


@blueprint.get("/<user_id>/transactions/")
def get_statement(user_id: str) -> Response:
    check_names(request, ("limit", "cursor", "status", "type", "from", "to"))
    wanted = Filter(
        read_word(request, "status", Status),
        read_word(request, "type", Type),
        read_instant(request, "from"),
        read_instant(request, "to"),
    )
    page = history.get_statement(
        read_id(user_id, user_not_found), wanted, read_cursor(request), read_limit(request, DEFAULT_PAGE, LONGEST_PAGE)
    )
    items = [show_transaction(transaction) for transaction in page.items]
    following = write_cursor(page.after)
    forms = ["application/json", "text/csv"]
    csv_asked = request.accept_mimetypes.best_match(forms, forms[0]) == "text/csv"
    response = _csv(items, following) if csv_asked else JsonAnswer({"items": items, "next": following})
    response.headers["Vary"] = "Accept"
    return response


def _csv(items: list[dict[str, Any]], following: str | None) -> Response:
    """The statement as CSV (RFC 4180), the cursor of the next page in a Link header.

    No column holds a client's own text, so no cell can begin what a spreadsheet would run.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(TransactionOut.model_fields))
    writer.writeheader()
    writer.writerows(items)
    response = Response(text.getvalue(), mimetype="text/csv")
    if following:
        query = urlencode({**request.args.to_dict(), "cursor": following})
        response.headers["Link"] = f'<{request.path}?{query}>; rel="next"'
    return response
