"""What is usual: the web inserts the row, sends one Celery message per payment, and a task settles that one payment.

Plain SQL, the same rows, the same server and broker. It keeps no order per user, which spares it work.
"""

import sys
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from celery import Celery
from flask import Flask, Response, request
from sqlalchemy import text

from bench.floors import books
from bench.floors.serving import serve
from bench.loads import single_puts
from bench.plan import Run, Values
from bench.stack import program, server, wait_until
from shared.database import transaction
from shared.processes import die_with_parent
from shared.settings import settings
from web.serving.loop import place_view

PROCESSES = 2
ANOTHER_REDIS_DATABASE = "/1"  # of the same server

celery = Celery("bench", broker=settings().broker_url, set_as_current=False)
celery.conf.update(task_default_queue="bench", task_ignore_result=True, task_acks_late=True)

_INSERT = text("""
    INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at, request_id)
    SELECT :uid, id, :type, :amount, nextval('transactions_accept_order_seq'), now(), :request_id
    FROM users WHERE id = :user_id
    ON CONFLICT (uid) DO NOTHING
""")
_LOCK = text("""
    SELECT users.balance FROM transactions t JOIN users ON users.id = t.user_id
    WHERE t.uid = :uid AND t.status = 'PENDING' FOR NO KEY UPDATE OF users
""")
_SETTLE = text("""
    WITH account AS MATERIALIZED (
        SELECT u.*, t.uid, CASE t.type WHEN 'DEPOSIT' THEN t.amount ELSE -t.amount END AS change,
               greatest(u.last_history_at, clock_timestamp()) AS at
        FROM transactions t JOIN users u ON u.id = t.user_id
        WHERE t.uid = :uid AND t.status = 'PENDING' AND (t.type = 'DEPOSIT' OR u.balance >= t.amount)
    ), booked AS (
        INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
        SELECT id, last_seq + 1, uid, change, balance + change, at, at, at FROM account
    ), told AS (
        INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
        SELECT id % 16, id, last_event_seq + 1, 'transaction.completed', uid, balance, balance + change, at
        FROM account
    ), final AS (
        UPDATE transactions t SET status = 'COMPLETED', settled_at = at FROM account WHERE t.uid = account.uid
    )
    UPDATE users SET balance = account.balance + change, last_seq = account.last_seq + 1,
        last_history_at = at, last_event_seq = account.last_event_seq + 1
    FROM account WHERE users.id = account.id
""")


@celery.task(name="settle_one")
def settle_one(uid: str) -> None:
    with transaction() as connection:
        if connection.scalar(_LOCK, {"uid": uid}) is not None:
            connection.execute(_SETTLE, {"uid": uid})  # a statement of its own: it sees what the lock waited for


def application() -> Any:
    die_with_parent()
    app = Flask("one_message")

    @app.put("/api/transaction/")
    @place_view
    def put() -> Response:
        asked: dict[str, Any] = request.get_json()
        row = {
            "uid": UUID(asked["uid"]),
            "user_id": asked["user_id"],
            "type": asked["type"],
            "amount": int(asked["amount"].replace(".", "")),
            "request_id": UUID(asked["uid"]).hex,
        }
        with transaction() as connection:
            connection.execute(_INSERT, row)
        settle_one.apply_async(args=[asked["uid"]], task_id=asked["uid"])
        return Response(b"{}", status=202, mimetype="application/json")

    return app


def measure(run: Run) -> Values:
    url = books.make(run, "messages")
    broker = urlsplit(run.stack.broker_url)._replace(path=ANOTHER_REDIS_DATABASE).geturl()
    variables = {"DATABASE_URL": url, "BROKER_URL": broker}
    log = run.log("one_message_worker")
    worker = [
        *(sys.executable, "-m", "celery", "-A", "bench.floors.one_message:celery", "worker", "--loglevel=info"),
        *("--pool=prefork", f"--concurrency={PROCESSES}", "--without-gossip", "--without-mingle"),
    ]
    with (
        program(worker, log, **variables),
        server("bench.floors.one_message", run.log("one_message"), **variables) as address,
    ):
        wait_until(lambda: b" ready." in log.read_bytes(), "the worker with one message per payment is ready", 60)
        values = single_puts(run, "one_message", address, url, run.plan.users)
    books.check(url, "one_message")
    return values


if __name__ == "__main__":
    serve("bench.floors.one_message:application")
