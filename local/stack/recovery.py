"""The recovery of a restored base backup. `up` waits for its end without a time-out, and reports its progress.

During recovery the server may already answer reads (hot standby), so an answer does not mean that it is ready.
"""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Final, NamedTuple

import psycopg2  # type: ignore[import-untyped]

from local.command import CommandError
from local.stack.postgres import Cluster, binary

RECOVERY_REPORT_INTERVAL_SECONDS: Final = 10.0
RECOVERY_POLL_INTERVAL_SECONDS: Final = 0.5

_STATE: Final = """
    SELECT pg_is_in_recovery(),
           CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END,
           CASE WHEN pg_is_in_recovery() THEN CAST(pg_last_wal_replay_lsn() AS text) END,
           CAST(pg_last_xact_replay_timestamp() AS text)
"""


class State(NamedTuple):
    """The state of a server. In recovery, `pause` is "not paused", "pause requested" or "paused".

    `replayed` is the last replayed position in the log, `replayed_until` the time of the last replayed commit.
    """

    in_recovery: bool
    pause: str | None
    replayed: str | None
    replayed_until: str | None


def refuse_standby(cluster: Cluster) -> None:
    """Raises CommandError if the cluster is a standby, because its recovery would never end."""
    if (cluster.folder / "standby.signal").exists():
        raise CommandError(
            f"{cluster.folder} is a standby (it has standby.signal) and takes no payments. To serve it, rename "
            "standby.signal to recovery.signal: then it replays what restore_command finds, and becomes a primary"
        )


class Recovery:
    """Checks whether the recovery has ended, and reports its progress at intervals."""

    def __init__(self, cluster: Cluster, is_up: Callable[[], bool], write: Callable[[str], None]) -> None:
        """`is_up` returns whether the server answers, perhaps only reads. `write` prints a line."""
        self._cluster = cluster
        self._is_up = is_up
        self._write = write
        self._next_look = 0.0
        self._next_line = time.monotonic() + RECOVERY_REPORT_INTERVAL_SECONDS
        self._phase = ""

    def has_ended(self) -> bool:
        """Returns whether the recovery has ended. Raises CommandError if the server refuses the password."""
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
        """Returns the server's state; None if it does not answer. Raises CommandError if it refuses the password."""
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
        """Prints a line when the phase changes, and every ten seconds. A server that just starts causes no line."""
        phase = self._phase if state is None else state.pause or ""
        if phase == self._phase and time.monotonic() < self._next_line:
            return
        self._phase, self._next_line = phase, time.monotonic() + RECOVERY_REPORT_INTERVAL_SECONDS
        if state is None:
            self._write("waiting for the database: it does not answer yet (see its log lines)")
            return
        progress = f"replayed up to {state.replayed}, last commit {state.replayed_until or 'none yet'}"
        if phase != "paused":
            self._write(f"the database is in recovery: {progress}")
            return
        resume = (
            f"PGPASSWORD=$(cat '{self._cluster.folder.parent}/postgres.password') '{binary('psql')}' -h 127.0.0.1 "
            f"-p {self._cluster.port} -U postgres -d postgres -c 'SELECT pg_wal_replay_resume()'"
        )
        self._write(f"the database has paused its recovery, {progress}. Check it, then end the recovery: {resume}")
