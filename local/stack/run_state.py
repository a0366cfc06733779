"""The state of a running `up` for other commands: two locks and a list of processes in the data folder.

Only `up` holds up.lock. If it is free, no `up` runs, whatever the files contain. The child processes inherit and hold
children.lock. While it is held, a process of an earlier run is still alive.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local.command import CommandError
from shared.settings import settings

CHILDREN_EXIT_TIMEOUT_SECONDS = 25.0  # an orphaned Postgres needs time for its shutdown checkpoint


@dataclass(frozen=True)
class Process:
    """A line of `ps`. An external server has no pid."""

    role: str
    pid: int | None
    url: str | None

    def as_json(self) -> dict[str, object]:
        """Returns the process as a JSON object, without `url` if it has none."""
        return {"role": self.role, "pid": self.pid, **({"url": self.url} if self.url else {})}


@dataclass(frozen=True)
class Running:
    """The addresses of a running service. Each raises CommandError if its server does not run."""

    data: Path
    urls: dict[str, str]
    up: int | None = None  # pid of the `up`, None without one

    def _url(self, role: str) -> str:
        if role in self.urls:
            return self.urls[role]
        if self.up is not None:
            raise CommandError(
                f"{role} is down or still starting; `up` (process {self.up}) restarts it: try again in a few seconds"
            )
        raise CommandError(f"no service runs on {self.data}; start it: ./payments up --data {self.data}")

    @property
    def web_url(self) -> str:
        """Returns the url of web."""
        return self._url("web")

    @property
    def database_url(self) -> str:
        """Returns the url of Postgres, with its password."""
        return self._url("postgres")

    @property
    def broker_url(self) -> str:
        """Returns the url of the broker, with its password."""
        return self._url("broker")


def connect_to(data: Path) -> Running:
    """Returns the addresses of the `up` that runs on this data; without one, the servers of the environment."""
    if (up := pid_of_up(data)) is not None:
        return Running(data, {p.role: p.url for p in running_processes(data) if p.url}, up)
    external_urls = {"postgres": plain_url(settings().database_url), "broker": settings().broker_url}
    return Running(data, {role: url for role, url in external_urls.items() if url})


def running_processes(data: Path) -> list[Process]:
    """Returns the processes of the running `up`. Raises CommandError if none runs."""
    if pid_of_up(data) is None:
        raise CommandError(f"no service runs on {data}; start it: ./payments up --data {data}")
    try:
        return [
            Process(p["role"], p["pid"], p.get("url"))
            for p in json.loads((_folder(data) / "state.json").read_text(encoding="utf-8"))
        ]
    except FileNotFoundError:
        return []  # `up` has just started


def write_processes(data: Path, processes: Sequence[Process]) -> None:
    """Replaces the list atomically. The file has passwords, so only its owner can read it."""
    new = _folder(data) / "state.json.new"
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump([process.as_json() for process in processes], file)
    new.replace(_folder(data) / "state.json")


def pid_of_up(data: Path) -> int | None:
    """Returns the pid of the `up` on this data, None if none runs. A shared lock fails only while one runs.

    Raises CommandError if the folder cannot be read.
    """
    try:
        with open(_folder(data) / "up.lock", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise CommandError(f"cannot read {data}: {error.strerror}") from None
    return None


def refuse_second_up(data: Path) -> None:
    """Raises CommandError if an `up` runs on this data."""
    if (pid := pid_of_up(data)) is not None:
        raise CommandError(f"already running on {data}, as process {pid}")


def wait_for_orphans(data: Path) -> None:
    """Waits until all processes of a killed `up` have ended. Changes nothing, and the folder need not exist.

    Raises CommandError if they do not end in time.
    """
    try:
        with open(_folder(data) / "children.lock", encoding="ascii") as file:
            _lock(file.fileno(), fcntl.LOCK_SH, CHILDREN_EXIT_TIMEOUT_SECONDS)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except BlockingIOError:
        raise CommandError(f"processes of an earlier run on {data} have not ended (fuser shows them)") from None
    except OSError as error:
        raise CommandError(f"cannot read {data}: {error.strerror}") from None


@contextmanager
def lock_folder(data: Path) -> Iterator[int]:
    """Creates the folder and takes both locks. Yields the descriptor that every child must inherit.

    Raises CommandError if another `up` runs or the folder cannot be used.
    """
    run = _folder(data)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        data.chmod(0o700)
        run.mkdir(mode=0o700, exist_ok=True)
        up = os.open(run / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
        children = os.open(run / "children.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # with a short wait, because another command may check the lock at this moment
            _lock(up, fcntl.LOCK_EX, seconds=1)
            _lock(children, fcntl.LOCK_EX, seconds=1)
        except BlockingIOError:
            raise CommandError(f"already running on {data}, as process {pid_of_up(data) or 'unknown'}") from None
        os.truncate(up, 0)
        os.write(up, str(os.getpid()).encode())
    except OSError as error:
        raise CommandError(f"cannot use the folder {data}: {error.strerror}") from None
    try:
        yield children
    finally:
        (run / "state.json").unlink(missing_ok=True)
        os.close(children)
        os.close(up)


def plain_url(url: str) -> str:
    """Returns the url without SQLAlchemy's driver name, for psql and psycopg2."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme.partition('+')[0]}{separator}{rest}"


def _folder(data: Path) -> Path:
    return data / "run"


def _lock(descriptor: int, kind: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
