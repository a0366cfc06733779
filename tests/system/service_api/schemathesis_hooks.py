"""What schemathesis loads: its check that valid data is accepted, less what no schema can say."""

from typing import Any

import schemathesis
from schemathesis.checks import positive_data_acceptance

# The same key or uid was sent before with other content: right or wrong only by what is stored.
BY_WHAT_IS_STORED = ("key_reused", "uid_reused")
# An instant is too far ahead by the database's clock, or leaves the years 1 to 9999 on its way to UTC.
BY_THE_CLOCK = ("must not be more than 60 seconds ahead", "must be an instant from year 1 to 9999 that exists")
# Whether an address may be sent to, and whether a text is a cursor that we gave.
BY_MEANING = ("url", "after")


@schemathesis.check
def valid_data_is_accepted(ctx: Any, response: Any, case: Any) -> None:
    if response.status_code != 422 or not _is_beyond_schemas(response.json(), case.body):
        positive_data_acceptance(ctx, response, case)


def _is_beyond_schemas(problem: dict[str, Any], body: Any) -> bool:
    if problem["code"] in BY_WHAT_IS_STORED:
        return True
    errors = problem.get("errors", [])
    return bool(errors) and all(
        e["message"] in BY_THE_CLOCK
        or e["field"] in BY_MEANING
        or _is_integer_with_a_point(e, body)
        or _is_number_of_more_digits(e, body)
        for e in errors
    )


def _is_integer_with_a_point(error: dict[str, str], body: Any) -> bool:
    """To JSON Schema 1.0 is an integer. To us it is none: who writes ids as floats loses digits above 2^53."""
    return error["field"] == "user_id" and isinstance(body, dict) and isinstance(body.get("user_id"), float)


def _is_number_of_more_digits(error: dict[str, str], body: Any) -> bool:
    """A schema could say it only by `multipleOf: 0.01`, which many validators compute in binary fractions."""
    value = body.get(error["field"]) if error["field"] in ("amount", "threshold") and isinstance(body, dict) else None
    return isinstance(value, float) and round(value, 2) != value
