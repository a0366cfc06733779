"""A process that accepts or settles once, with a failpoint in it. Run as the target of a forked process."""

import os
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

from shared import database, settings
from shared.payments.accept import Accepted
from shared.payments.model import TransactionRequest
from shared.payments.settle import work_lanes
from tests.faults.failpoints import IDLE_LIMIT, Failpoint
from web.commit.group_commit import GroupCommit
from web.limits.backlog import backlog_reader

RING_SECONDS = 3


class Order(NamedTuple):
    """What to do and where to fail. Either a request to accept or a lane to settle."""

    servers: dict[str, str]
    point: str = ""
    action: str = ""
    request: TransactionRequest | None = None
    lane: int | None = None


class Report(NamedTuple):
    """How it went. `accepted`: the request was told that it stands."""

    accepted: bool
    error: str | None
    fired: bool
    passed: list[str]


def run(order: Order, told: Connection) -> None:
    """Do it, and send a Report as the failpoint fires, as soon as there is an answer, and at the end."""
    for descriptor in (1, 2):  # its log lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    os.environ.update(order.servers)
    settings.settings.cache_clear()
    if order.action == "stall":
        database.SESSION_SETTINGS["idle_in_transaction_session_timeout"] = IDLE_LIMIT
    backlog_reader.read()  # connects, and leaves the backlog alone for a while: only the use case's own steps are seen
    accepted, error = False, None

    def report() -> None:
        told.send(Report(accepted, error, failpoint.fired.is_set(), list(failpoint.passed)))

    failpoint = Failpoint(order.point, order.action, tell=report)
    failpoint.install()
    try:
        if order.request is not None:
            (reply,) = GroupCommit().submit([order.request])
            accepted = isinstance(reply, Accepted)
            report()
            _await_ring(failpoint)
        else:
            assert order.lane is not None
            work_lanes([order.lane])
    except Exception as raised:
        error = repr(raised)
    report()


def _await_ring(failpoint: Failpoint) -> None:
    """The bell is rung by another thread, after the answer: until it has been, or the failpoint has acted."""
    ends = time.monotonic() + RING_SECONDS
    while not failpoint.fired.is_set() and "after send the task" not in failpoint.passed and time.monotonic() < ends:
        time.sleep(0.01)


def as_environment(database_url: str, broker_url: str) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "BROKER_URL": broker_url, "PAYMENTS_PROCESS": "victim"}
