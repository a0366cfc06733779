"""`demo`: the first payments against a running service, told step by step, ending in a statement.

It uses nothing but `client`, as any other program would.
"""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import click

from client import Balance, Payments, PaymentsApiError, Rejected, Transaction, Unavailable, make_uid
from local.command import CommandError, setting_options, verbatim
from local.state import connect_to
from local.tables import table
from shared.settings import Settings, settings

DEMO_TIMEOUT_SECONDS: Final = 5.0
DEMO_WAIT_SECONDS: Final = 15.0
TITLE_WIDTH: Final = 58

DESCRIPTION = """\
Makes the first payments against the service that runs on --data, or at --url: adds a user, pays in and out, sends a
payment twice, asks for too much, asks for balances now and then, and prints the statement. Each run adds a new user.

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
    ada = payments.add_user("Ada")  # first of all, so that nothing is said where there is no service
    print(f"The first payments at {url}\n\n  {_dotted('add a user, Ada')} user {ada.id}")
    last_week, uid = datetime.now(UTC) - timedelta(days=7), make_uid()
    pay_in = partial(payments.deposit, ada.id, "100.00", last_week, wait=DEMO_WAIT_SECONDS)
    pay_out = partial(payments.withdraw, ada.id, "30.00", uid=uid, wait=DEMO_WAIT_SECONDS)
    _step(f"pay in 100.00, dated {last_week:%Y-%m-%d}", pay_in)
    _step("pay out 30.00, now", pay_out)
    _step("send that again, with the same uid, as after a cut line", pay_out)
    _step("pay out 1000.00, more than there is", partial(payments.withdraw, ada.id, "1000.00", wait=DEMO_WAIT_SECONDS))
    _step("ask for the balance now", partial(payments.balance, ada.id))
    for days in (8, 2):
        at = datetime.now(UTC) - timedelta(days=days)
        _step(f"ask for the balance at {at:%Y-%m-%d %H:%M}, {days} days ago", partial(payments.balance, ada.id, at))
    print(f"\nThe statement of user {ada.id}, newest first\n\n{_statement(payments.statement(ada.id))}")


def _step(title: str, act: Callable[[], Transaction | Balance]) -> None:
    """Say what is being done, do it, say what came of it and how long it took."""
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


def _describe(answer: Transaction | Balance) -> str:
    if isinstance(answer, Balance):
        return str(answer.balance)
    if not answer.is_final:
        raise CommandError(f"{answer.uid} is still PENDING after {DEMO_WAIT_SECONDS:.0f} s: does a worker run?")
    repeat_note = ", recognised: the same answer" if answer.replayed else ""
    if answer.reason:
        return f"{answer.status}: {answer.reason}{repeat_note}"
    return f"{answer.status}, balance {answer.balance_after}{repeat_note}"


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
