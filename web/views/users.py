"""The views of users: create a user, read a user, its balance and its statement."""

from flask import Blueprint, Response, request

from shared.errors import user_not_found
from shared.money import format_amount
from shared.payments import reads
from shared.payments.model import StatementFilter
from shared.payments.to_json import transaction_to_json
from shared.payments.users import register
from shared.timestamps import format_instant
from web.http.body import read_json
from web.http.cursors import write_cursor
from web.http.params import MAX_PAGE_ITEMS, BalanceQuery, StatementQuery, read_id, read_idempotency_key
from web.http.responses import JsonResponse
from web.openapi.operation import TEXT, ApiResponse, documented
from web.schemas import BalanceOut, NewUser, StatementOut, UserOut, UserWithBalanceOut, user_to_json
from web.serving.loop import in_thread, on_loop
from web.views.statement_csv import csv_page, csv_stream

blueprint = Blueprint("users", __name__, url_prefix="/api/user")


@blueprint.post("/")
@on_loop
@documented(
    {201: ApiResponse(UserOut, "The user.", headers=("Location",), optional_headers=("Idempotency-Replayed",))},
    body=NewUser,
    headers=("Idempotency-Key",),
)
def post_user() -> Response:
    """Creates a user and returns it."""
    key = read_idempotency_key(request)
    user, replayed = in_thread(register, read_json(request, NewUser).name, key)
    response = JsonResponse(user_to_json(user), 201)
    response.headers["Location"] = f"/api/user/{user.id}/"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@blueprint.get("/<user_id>/")
@documented({200: ApiResponse(UserWithBalanceOut, "The user.")})
def get_user(user_id: str) -> Response:
    """Returns a user with its current balance."""
    user = reads.get_user(read_id(user_id, user_not_found))
    return JsonResponse({**user_to_json(user), "balance": format_amount(user.balance)})


@blueprint.get("/<user_id>/balance/")
@documented({200: ApiResponse(BalanceOut, "The balance.")})
def get_balance(user_id: str, query: BalanceQuery) -> Response:
    """Returns a user's balance, now or at a given instant."""
    balance = reads.get_balance(read_id(user_id, user_not_found), query.date)
    return JsonResponse(
        {
            "user_id": balance.user_id,
            "balance": format_amount(balance.balance),
            "date": format_instant(balance.instant),
        }
    )


@blueprint.get("/<user_id>/transactions/")
@documented(
    {
        200: ApiResponse(
            StatementOut,
            "A page as JSON. As CSV: a page if there is a `limit`, otherwise all rows as a stream. If the stream "
            "fails, it ends with a quoted cell that is not closed.",
            optional_headers=("Link", "Content-Disposition"),
            other_media={"text/csv": TEXT},
        )
    }
)
def get_statement(user_id: str, query: StatementQuery) -> Response:
    """Returns a page of a user's transactions, in descending order of acceptance."""
    filters = StatementFilter(query.status, query.type, query.since, query.until)
    numeric_id = read_id(user_id, user_not_found)
    forms = ["application/json", "text/csv"]
    as_csv = request.accept_mimetypes.best_match(forms, forms[0]) == "text/csv"
    if as_csv and "limit" not in query.model_fields_set:
        response = csv_stream(
            numeric_id, lambda key: reads.get_statement(numeric_id, filters, key, MAX_PAGE_ITEMS), query.cursor
        )
    else:
        page = reads.get_statement(numeric_id, filters, query.cursor, query.limit)
        response = csv_page(numeric_id, page) if as_csv else _json_page(page)
    response.headers["Vary"] = "Accept"
    return response


def _json_page(page: reads.StatementPage) -> Response:
    return JsonResponse({"items": [transaction_to_json(t) for t in page.items], "next": write_cursor(page.after)})
