"""A thousand clients wait for payments that cannot settle yet: what that costs the payments of others.

Their lane is held by us, as a worker that settles it would hold it. So they wait for real, and other lanes go on.
"""

import itertools
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.generator import Pool, Sample, open_loop_on, read_each, send_each
from bench.loads import await_settled, expect, open_accounts, payments
from bench.plan import Run, Skipped, Values
from bench.stack import BenchError, query, sql, wait_until
from shared.payments.model import lane_of

RATE = 50.0  # payments of others a second
OTHERS_CONNECTIONS = 128
WAIT_SECONDS = 30  # the longest that the service grants
MAX_LOAD_SECONDS = 15.0  # half of it, so that nobody's wait ends before the release
ACCEPT_SECONDS = 10.0
RETRY_SECONDS = 1.0  # a client that may not wait asks again after Retry-After
SPARE_DESCRIPTORS = 256

_HOLD_LANE = "SELECT pg_advisory_lock(7411, %s)"  # the lock that shared/payments/queries/lanes.py takes
_RELEASE_LANE = "SELECT pg_advisory_unlock(7411, %s)"
_PENDING = "SELECT count(*) FROM transactions WHERE lane = %s AND status = 'PENDING'"


def measure(run: Run) -> Values:
    """The crowd sends and waits; then others pay for some seconds; then the crowd's lane is released."""
    raise_descriptors(run.plan.crowd + OTHERS_CONNECTIONS + SPARE_DESCRIPTORS)
    web, url = run.stack.web, run.stack.database_url
    users = open_accounts(web, url, run.plan.users)
    lane = lane_of(users[0])
    held, others = ([user for user in users if (lane_of(user) == lane) is wanted] for wanted in (True, False))
    crowd = list(itertools.islice(payments(held, f"Prefer: wait={WAIT_SECONDS}"), run.plan.crowd))
    with Pool(web, OTHERS_CONNECTIONS) as others_pool, Pool(web, len(crowd)) as pool:
        with _lane_held(url, lane):
            began = time.perf_counter()
            send_each(pool, crowd)
            wait_until(lambda: _pending(url, lane) == len(crowd), "the whole crowd waits", ACCEPT_SECONDS)
            accepted = time.perf_counter() - began
            seconds = min(run.plan.seconds, MAX_LOAD_SECONDS)
            sample = open_loop_on(others_pool, payments(others, "Prefer: wait=10"), RATE, seconds)
            if _pending(url, lane) != len(crowd):
                raise BenchError("payments of the crowd were settled although their lane was held")
        statuses = read_each(pool)
    expect(sample, {200, 202})
    if set(statuses) - {200, 202}:
        raise BenchError(f"the crowd was answered with {dict(statuses)}")
    await_settled(url)
    run.notes["crowd"] = {"statuses": statuses, "others": sample.statuses, "seconds until accepted": accepted}
    return {"crowd_waited_percent": 100 * statuses[200] / len(crowd), **until_final(sample)}


def until_final(sample: Sample) -> Values:
    """A declined wait counts as the second after which its client asks again: leaving it out would flatter us."""
    declined = sample.by_status.get(202, [])
    latencies = sample.by_status.get(200, []) + [latency + RETRY_SECONDS for latency in declined]
    final = Sample({200: latencies})
    return {
        "crowd_others_p50_ms": 1000 * final.percentile(50),
        "crowd_others_p99_ms": 1000 * final.percentile(99),
        "crowd_others_declined_percent": 100 * len(declined) / len(latencies),
    }


@contextmanager
def _lane_held(url: str, lane: int) -> Iterator[None]:
    """Of the session, not of a transaction: an idle transaction would hold back vacuum, and be ended."""
    with sql(url) as cursor:
        cursor.execute(_HOLD_LANE, (lane,))
        yield
        cursor.execute(_RELEASE_LANE, (lane,))


def _pending(url: str, lane: int) -> int:
    return int(query(url, _PENDING, lane)[0][0])


def raise_descriptors(wanted: int) -> None:
    """Each client is a descriptor of ours; the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Skipped(f"{wanted} descriptors are needed, and at most {hard} may be open")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
