"""A restored base backup recovers before it takes writes: `up` waits for that, however long, and says how it goes.

During recovery the server may answer reads already (hot standby), so that it answers does not mean that it is ready.
"""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Final, NamedTuple

import psycopg2  # type: ignore[import-untyped]

from local.command import CommandError
from local.postgres import Cluster, binary

RECOVERY_REPORT_INTERVAL_SECONDS: Final = 10.0
RECOVERY_POLL_INTERVAL_SECONDS: Final = 0.5

_STATE: Final = """
    SELECT pg_is_in_recovery(),
           CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END,
           CASE WHEN pg_is_in_recovery() THEN CAST(pg_last_wal_replay_lsn() AS text) END,
           CAST(pg_last_xact_replay_timestamp() AS text)
"""


class State(NamedTuple):
    """Of a server in recovery: `pause` is "not paused", "pause requested" or "paused"; how far the replay is."""

    in_recovery: bool
    pause: str | None
    replayed: str | None
    replayed_until: str | None


def refuse_standby(cluster: Cluster) -> None:
    """Raises CommandError for a folder whose server would follow another one for ever."""
    if (cluster.folder / "standby.signal").exists():
        raise CommandError(
            f"{cluster.folder} is a standby (it has standby.signal) and takes no payments. To serve it, rename "
            "standby.signal to recovery.signal: then it replays what restore_command finds, and becomes a primary"
        )


class Recovery:
    """Looks whether the recovery has ended, and tells of its progress now and then."""

    def __init__(self, cluster: Cluster, is_up: Callable[[], bool], write: Callable[[str], None]) -> None:
        """`is_up`: whether the server answers, though perhaps only reads."""
        self._cluster = cluster
        self._is_up = is_up
        self._write = write
        self._next_look = 0.0
        self._next_line = time.monotonic() + RECOVERY_REPORT_INTERVAL_SECONDS
        self._phase = ""

    def has_ended(self) -> bool:
        """Raises CommandError where the server refuses us for a reason that will not pass."""
        if time.monotonic() < self._next_look:
            return False
        state = self._read() if self._is_up() else None
        if state and not state.in_recovery:
            return True
        if state:
            self._next_look = time.monotonic() + RECOVERY_POLL_INTERVAL_SECONDS
        self._report(state)
        return False

    def _read(self) -> State | None:
        """None where the server does not answer after all."""
        try:
            with closing(self._cluster.connect()) as connection, connection.cursor() as cursor:
                cursor.execute(_STATE)
                return State(*cursor.fetchone())
        except psycopg2.Error as error:
            if "authentication failed" in str(error):
                raise CommandError(
                    f"the password in {self._cluster.folder.parent}/postgres.password is not the one of this database: "
                    "restore the password files of the data folder together with its folder `postgres`"
                ) from None
            return None

    def _report(self, state: State | None) -> None:
        """A line where the phase changes, and then every ten seconds; of a server that is just starting, none."""
        phase = self._phase if state is None else state.pause or ""
        if phase == self._phase and time.monotonic() < self._next_line:
            return
        self._phase, self._next_line = phase, time.monotonic() + RECOVERY_REPORT_INTERVAL_SECONDS
        if state is None:
            self._write("waiting for the database: it does not answer yet (its own log lines say why)")
            return
        progress = f"replayed up to {state.replayed}, last commit {state.replayed_until or 'none yet'}"
        if phase != "paused":
            self._write(f"the database is in recovery: {progress}")
            return
        resume = (
            f"PGPASSWORD=$(cat '{self._cluster.folder.parent}/postgres.password') '{binary('psql')}' -h 127.0.0.1 "
            f"-p {self._cluster.port} -U postgres -d postgres -c 'SELECT pg_wal_replay_resume()'"
        )
        self._write(f"the database has paused its recovery, {progress}. Look at it, then end the recovery: {resume}")
