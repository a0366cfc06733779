"""A long list: how fast it is settled alone and beside single payments of others, and how long those take until final."""

import threading
import time

from bench import backlog, in_process
from bench.generator import Sample, open_loop
from bench.loads import await_settled, open_accounts, payments
from bench.plan import Run, Values
from bench.stack import BenchError, add_users, query, wait_until
from shared.payments import doorbell
from shared.payments.model import LANES

MAX_SECONDS = 600.0
_LIST_WAITS = "SELECT EXISTS (SELECT FROM transactions WHERE bulk AND status = 'PENDING' AND parked_at IS NULL)"


def alone(run: Run) -> Values:
    """Rows of lists per second, from the instant that the workers may run until none waits."""
    rows, seconds = run.plan.list_rows, _drain(run)
    return {"list_alone_per_s": rows / seconds}


def beside_payments(run: Run) -> Values:
    """The same while others pay: single PUTs in all lanes, each answered when final, until no row of the list waits."""
    payers = open_accounts(run.stack.web, run.stack.database_url, run.plan.users)
    expected_seconds = run.plan.list_rows / run.values["list_alone_per_s"]
    samples: list[Sample] = []

    def pay() -> None:
        requests = payments(payers, "Prefer: wait=30")
        samples.append(open_loop(run.stack.web, requests, run.plan.list_puts_per_s, expected_seconds))

    payer = threading.Thread(target=pay, name="payer")
    seconds = _drain(run, payer)
    payer.join()
    await_settled(run.stack.database_url)
    (sample,) = samples
    run.notes["beside a list"] = {"statuses": sample.statuses, "seconds": seconds}
    if set(sample.statuses) - {200, 202}:
        raise BenchError(f"answered with {sample.statuses}")
    return {
        "list_beside_per_s": run.plan.list_rows / seconds,
        "beside_list_p50_ms": 1000 * sample.percentile(50, 200),
        "beside_list_p99_ms": 1000 * sample.percentile(99, 200),
        "beside_list_not_waited_percent": 100 * sample.statuses.get(202, 0) / sum(sample.statuses.values()),
    }


def _drain(run: Run, payer: threading.Thread | None = None) -> float:
    """Returns the seconds from the first settled row of a list to the last one."""
    url = run.stack.database_url
    users = add_users(url, run.plan.users)
    with backlog.stopped(run.stack.pids_of("worker")):
        backlog.fill(url, users, run.plan.list_rows, bulk=True)
        with in_process.use(url, run.stack.broker_url, run.log("in_process")):
            doorbell.ring({lane: doorbell.RingSource(f"bench-{lane}") for lane in range(LANES)})
    began = time.perf_counter()
    if payer:
        payer.start()
    wait_until(lambda: not query(url, _LIST_WAITS)[0][0], "no row of the list waits", MAX_SECONDS, every=0.1)
    return time.perf_counter() - began
