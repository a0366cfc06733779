"""`demo`: makes a few payments on a running service, prints each step, and ends with a statement.

It uses only `payments_client`, as any other program would.
"""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import click

from local.command import CommandError, setting_options, verbatim
from local.stack.run_state import connect_to
from local.tables import table
from payments_client import Balance, Payments, PaymentsApiError, Rejected, Transaction, Unavailable, make_uid
from shared.settings import Settings, settings

DEMO_TIMEOUT_SECONDS: Final = 5.0
DEMO_WAIT_SECONDS: Final = 15.0
TITLE_WIDTH: Final = 58

DESCRIPTION = """\
Makes a few payments on the service that runs on --data, or at --url. It creates a user, pays in and out, repeats a
payment, pays out too much, reads balances now and in the past, and prints the statement. Each run creates a new user.

  ./payments demo
  PAYMENTS_KEY=... ./payments demo --url https://payments.example.com"""


@click.command("demo", short_help="make the first payments, step by step", help=verbatim(DESCRIPTION))
@setting_options("url")
def command(options: Settings) -> int:
    url = options.url or connect_to(options.data).web_url
    try:
        _run_steps(Payments(url, settings().key or None, patience=DEMO_TIMEOUT_SECONDS), url)
    except ValueError as error:
        raise CommandError(str(error)) from None
    except Unavailable as error:
        raise CommandError(error.detail) from None
    except PaymentsApiError as error:
        raise CommandError(f"the service refused: {error}") from None
    return 0


def _run_steps(payments: Payments, url: str) -> None:
    ada = payments.add_user("Ada")  # first, so that nothing is printed if the service does not answer
    print(f"The first payments at {url}\n\n  {_dotted('add a user, Ada')} user {ada.id}")
    last_week, uid = datetime.now(UTC) - timedelta(days=7), make_uid()
    pay_in = partial(payments.deposit, ada.id, "100.00", last_week, wait=DEMO_WAIT_SECONDS)
    pay_out = partial(payments.withdraw, ada.id, "30.00", uid=uid, wait=DEMO_WAIT_SECONDS)
    _step(f"pay in 100.00, dated {last_week:%Y-%m-%d}", pay_in)
    _step("pay out 30.00, now", pay_out)
    _step("repeat it with the same uid, as after a lost answer", pay_out)
    _step(
        "pay out 1000.00, more than the balance", partial(payments.withdraw, ada.id, "1000.00", wait=DEMO_WAIT_SECONDS)
    )
    _step("read the balance", partial(payments.balance, ada.id))
    for days in (8, 2):
        at = datetime.now(UTC) - timedelta(days=days)
        _step(f"read the balance at {at:%Y-%m-%d %H:%M}, {days} days ago", partial(payments.balance, ada.id, at))
    print(f"\nThe statement of user {ada.id}, newest first\n\n{_statement(payments.statement(ada.id))}")


def _step(title: str, act: Callable[[], Transaction | Balance]) -> None:
    """Prints the title, runs the step, and prints its result and duration."""
    print(f"  {_dotted(title)} ", end="", flush=True)
    started = time.monotonic()
    try:
        outcome = _describe(act())
    except Rejected as error:
        outcome = _describe(error.transaction)
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{outcome} ({(time.monotonic() - started) * 1000:.0f} ms)", flush=True)


def _describe(result: Transaction | Balance) -> str:
    if isinstance(result, Balance):
        return str(result.balance)
    if not result.is_final:
        raise CommandError(f"{result.uid} is still PENDING after {DEMO_WAIT_SECONDS:.0f} s: does a worker run?")
    repeat_note = ", recognised: the same answer" if result.replayed else ""
    if result.reason:
        return f"{result.status}: {result.reason}{repeat_note}"
    return f"{result.status}, balance {result.balance_after}{repeat_note}"


def _statement(transactions: Iterable[Transaction]) -> str:
    header = ("accepted", "dated", "type", "amount", "balance after", "status", "uid")
    rows = [
        (
            f"{t.accepted_at:%Y-%m-%d %H:%M:%S}",
            f"{t.timestamp:%Y-%m-%d %H:%M:%S}" if t.timestamp else "",
            t.type,
            str(t.amount),
            "" if t.balance_after is None else str(t.balance_after),
            t.reason or t.status,
            str(t.uid),
        )
        for t in transactions
    ]
    return table(header, rows, right=("amount", "balance after"))


def _dotted(title: str) -> str:
    return f"{title + ' ':.<{TITLE_WIDTH}}"
