"""Millions of rows of skewed data, in a database of its own, for tests of what a statement reads.

One user has most events, one webhook most deliveries, some lanes have none. Only the shape of the data counts: these are no
books that balance. Triggers and secondary indexes are away while the rows are made, for speed.
"""

from typing import Final

from sqlalchemy import Connection, text

EVENTS: Final = 1_600_000
BUSY: Final = 1  # the user of the first 1,300,000 events, in lane 1
EVENTS_OF_BUSY: Final = 1_300_000
FIRST_OF_MANY: Final = 2  # the first of the users who share the other events
LANES_WITH_EVENTS: Final = 10  # lanes 2 to 11 have the others' events; 0 and 12 to 15 have none
USERS: Final = 64_000
FINAL: Final = 200_000  # transactions of the newest events
PENDING: Final = 60_000  # of one user each
LANE_OF_PENDING: Final = 3
USER_BEHIND: Final = 16 * 2_500 + 3  # of that lane, without any row in it
PARKED_USERS: Final = 40_000  # two rows each
KEYS: Final = 2_000  # revoked ones
WEBHOOKS: Final = 30

# Webhooks by what they have. Each of the others is through with all events and has no deliveries.
BUSY_HOOK, CROWDED_HOOK, BEHIND_HOOK = 1, 2, 3  # the last one is deleted
LINE: Final = 50_000  # undelivered ones of the busy user at the busy webhook
DELIVERED: Final = 60_000
DEAD: Final = 40_000
HEADS: Final = 50_000  # users of the crowded webhook, each with a delivery that is due
OF_DELETED: Final = 50_000

_TABLES: Final = ("users", "transactions", "ledger", "events", "webhooks", "webhook_cursors", "deliveries", "api_keys")
_PARAMETERS: Final = {
    "events": EVENTS,
    "events_of_busy": EVENTS_OF_BUSY,
    "busy": BUSY,
    "final": FINAL,
    "pending": PENDING,
    "parked": PARKED_USERS,
    "keys": KEYS,
    "users": USERS,
    "webhooks": WEBHOOKS,
    "delivered": DELIVERED,
    "dead": DEAD,
    "line": LINE,
    "heads": HEADS,
    "of_deleted": OF_DELETED,
}
_BEGIN: Final = "CAST('2025-01-01 00:00Z' AS timestamptz)"
_UID: Final = "CAST(lpad(to_hex(n), 32, '0') AS uuid)"
# The n-th event is of this user, and has this place among the user's events.
_USER: Final = f"""
    CASE WHEN n < :events_of_busy THEN :busy
         ELSE {FIRST_OF_MANY} + n % {LANES_WITH_EVENTS} + 16 * (n / {LANES_WITH_EVENTS} % 3000) END
"""
_NTH: Final = f"CASE WHEN n < :events_of_busy THEN n + 2 ELSE n / {LANES_WITH_EVENTS} / 3000 + 2 END"

# Few rows, without any skew: stale statistics are those of this hour.
_FEW: Final = (
    "INSERT INTO users (name) SELECT 'Ann' FROM generate_series(1, :users)",
    """INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
       SELECT n % 16, n, 1, 'transaction.completed', gen_random_uuid(), 0, 1, '2024-01-01' FROM generate_series(1, 1600) n""",
    """INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at, status, settled_at, parked_at)
       SELECT gen_random_uuid(), n, 'DEPOSIT', 1, n, '2024-01-01', CASE WHEN n <= 1500 THEN 'COMPLETED' ELSE 'PENDING' END,
              CASE WHEN n <= 1500 THEN now() END, CASE WHEN n > 1550 THEN now() END FROM generate_series(1, 1600) n""",
    """INSERT INTO webhooks (url, events, secret)
       SELECT 'http://receiver/', '{transaction.completed}', '' FROM generate_series(1, :webhooks)""",
    "INSERT INTO webhook_cursors SELECT id, lane, 0 FROM webhooks, generate_series(0, 15) AS lane",
    """INSERT INTO deliveries (webhook_id, event_id, position, type, user_id, user_seq, uid, balance, occurred_at,
                               next_attempt_at, delivered_at)
       SELECT 29, n, 0, 'transaction.completed', n, 1, gen_random_uuid(), 1, '2024-01-01',
              CASE WHEN n > 500 THEN now() END, CASE WHEN n <= 500 THEN now() END FROM generate_series(1, 1000) n""",
    "INSERT INTO api_keys (name, scope, secret_hash) SELECT 'k', 'read', sha256('k') FROM generate_series(1, 10)",
    "ANALYZE users, transactions, events, webhooks, webhook_cursors, deliveries, api_keys",
)
_MANY: Final = (
    f"""INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
        SELECT user_id % 16, user_id, nth, 'transaction.completed', {_UID}, nth, nth + 1, {_BEGIN} + n * interval '1 second'
        FROM (SELECT n, {_USER} AS user_id, {_NTH} AS nth FROM generate_series(0, :events - 1) AS n) AS event""",
    f"""INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at, status, settled_at)
        SELECT {_UID}, {_USER}, 'DEPOSIT', 1, n + 2000, {_BEGIN} + n * interval '1 second', 'COMPLETED',
               {_BEGIN} + n * interval '1 second'
        FROM generate_series(:events_of_busy - :final / 2, :events_of_busy + :final / 2) AS n""",
    f"""INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
        SELECT {_USER}, {_NTH}, {_UID}, 1, {_NTH}, moment - CASE WHEN n % 6 = 0 THEN interval '1 hour' ELSE '0' END,
               moment, moment
        FROM (SELECT n, {_BEGIN} + n * interval '1 second' AS moment
              FROM generate_series(:events_of_busy - :final / 2, :events_of_busy + :final / 2) AS n) AS event""",
    # one user's long line, many users' lines of one, many parked users of whom one row failed and one waits behind it
    f"""INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at, bulk)
        SELECT gen_random_uuid(), CASE WHEN n % 2 = 0 THEN {LANE_OF_PENDING} ELSE {LANE_OF_PENDING} + 16 * (n % 2000) END,
               'DEPOSIT', 1, :events + 10000 + n, {_BEGIN}, n % 4 = 0 FROM generate_series(1, 2 * :pending) AS n""",
    f"""INSERT INTO transactions (uid, user_id, type, amount, accept_order, accepted_at, parked_at, attempts)
        SELECT gen_random_uuid(), 5 + n / 2, 'DEPOSIT', 1, :events + 10000000 + n, {_BEGIN}, clock_timestamp(),
               CASE WHEN n % 2 = 0 THEN 10 ELSE 0 END FROM generate_series(0, 2 * :parked - 1) AS n""",
    """INSERT INTO deliveries (webhook_id, event_id, position, type, user_id, user_seq, uid, balance, occurred_at,
                               delivered_at, dead_at, next_attempt_at)
       SELECT 1, n, 0, 'transaction.completed', :busy, n, gen_random_uuid(), 1, now(),
              CASE WHEN n <= :delivered THEN now() - interval '10 days' + n * interval '1 second' END,
              CASE WHEN n > :delivered AND n <= :delivered + :dead THEN now() END,
              CASE WHEN n = :delivered + :dead + 1 THEN now() END
       FROM generate_series(1, :delivered + :dead + :line) AS n""",
    """INSERT INTO deliveries (webhook_id, event_id, position, type, user_id, user_seq, uid, balance, occurred_at,
                               next_attempt_at)
       SELECT 2, :events - :heads + n, 0, 'transaction.completed', n, 1, gen_random_uuid(), 1, now(),
              now() - interval '1 hour' + n * interval '1 millisecond' FROM generate_series(1, :heads) AS n""",
    """INSERT INTO deliveries (webhook_id, event_id, position, type, user_id, user_seq, uid, balance, occurred_at)
       SELECT 30, n, 0, 'transaction.completed', n, 1, gen_random_uuid(), 1, now()
       FROM generate_series(1, :of_deleted) AS n""",
    "UPDATE webhooks SET deleted_at = now() WHERE id = 30",
    """INSERT INTO api_keys (name, scope, secret_hash, revoked_at)
       SELECT 'k', 'read', sha256('k'), now() FROM generate_series(1, :keys)""",
    "INSERT INTO verifications (users, entries, differences) SELECT 1, 1, 0 FROM generate_series(1, 10000)",
)
_AFTER: Final = (
    "UPDATE users SET last_seq = 1000000, last_event_seq = 1000000 WHERE id <> :busy",  # above all seqs that there are
    """UPDATE webhook_cursors SET through = coalesce((
           SELECT id FROM events WHERE (lane, id) <= (webhook_cursors.lane, 9e18::bigint) AND lane >= webhook_cursors.lane
           ORDER BY lane DESC, id DESC LIMIT 1), 0)
       WHERE webhook_id <> 3""",
    "UPDATE webhook_cursors SET through = 50000 WHERE webhook_id = 3",
)
# What is away while the rows are made: how to take it away, how to make it again.
_INDEXES: Final = """
    SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
           format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE contype IN ('p', 'u') AND conrelid::regclass::text = ANY(:tables)
    UNION ALL
    SELECT format('DROP INDEX %I', indexname), indexdef FROM pg_indexes
    WHERE schemaname = current_schema() AND tablename = ANY(:tables)
      AND indexname NOT IN (SELECT conname FROM pg_constraint)
"""


def load(connection: Connection) -> None:
    """Fills an empty database. The connection is in autocommit; the statistics are those of the first few rows."""
    connection.execute(text("SET synchronous_commit = off"))
    for table in _TABLES:
        connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = false)"))
    _run(connection, _FEW)
    indexes = connection.execute(text(_INDEXES), {"tables": list(_TABLES)}).all()
    for drop, _ in indexes:
        connection.execute(text(drop))
    _run(connection, _MANY)
    connection.execute(text("SET maintenance_work_mem = '256MB'"))
    for _, make in indexes:
        connection.execute(text(make))
    _run(connection, _AFTER)
    for table in _TABLES:
        connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))


def _run(connection: Connection, statements: tuple[str, ...]) -> None:
    for statement in statements:
        asked = text(statement)
        connection.execute(asked, {name: _PARAMETERS[name] for name in asked.compile().params})
