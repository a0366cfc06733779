"""What other commands know of a running `up`: two locks and a list of processes in the data folder.

`up` alone holds up.lock: whoever finds it free knows that no `up` runs, whatever files say. The children hold
children.lock, which they inherit: while it is taken, something of an earlier run still lives.
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

CHILDREN_EXIT_TIMEOUT_SECONDS = 25.0  # an orphaned Postgres needs its shutdown checkpoint


@dataclass(frozen=True)
class Process:
    """A line of `ps`. A server that `up` was given has no pid."""

    role: str
    pid: int | None
    url: str | None

    def as_json(self) -> dict[str, object]:
        return {"role": self.role, "pid": self.pid, **({"url": self.url} if self.url else {})}


@dataclass(frozen=True)
class Running:
    """Where a running service is. Asking for what is not there is the caller's one clear error line."""

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
        return self._url("web")

    @property
    def database_url(self) -> str:
        return self._url("postgres")

    @property
    def broker_url(self) -> str:
        return self._url("broker")


def connect_to(data: Path) -> Running:
    """Find the `up` that runs on this data; without one, the servers that the environment names are used."""
    if (up := pid_of_up(data)) is not None:
        return Running(data, {p.role: p.url for p in running_processes(data) if p.url}, up)
    external_urls = {"postgres": plain_url(settings().database_url), "broker": settings().broker_url}
    return Running(data, {role: url for role, url in external_urls.items() if url})


def running_processes(data: Path) -> list[Process]:
    if pid_of_up(data) is None:
        raise CommandError(f"no service runs on {data}; start it: ./payments up --data {data}")
    try:
        return [
            Process(p["role"], p["pid"], p.get("url"))
            for p in json.loads((_folder(data) / "state.json").read_text(encoding="utf-8"))
        ]
    except FileNotFoundError:
        return []  # it has just started


def write_processes(data: Path, processes: Sequence[Process]) -> None:
    """Replace the list at once: a reader sees the old or the new. It holds passwords, so it is ours alone."""
    new = _folder(data) / "state.json.new"
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump([process.as_json() for process in processes], file)
    new.replace(_folder(data) / "state.json")


def pid_of_up(data: Path) -> int | None:
    """Pid of the `up` on this data, None if there is none. A shared lock is refused only while one runs."""
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
    if (pid := pid_of_up(data)) is not None:
        raise CommandError(f"already running on {data}, as process {pid}")


def wait_for_orphans(data: Path) -> None:
    """Wait until the last process of a killed `up` has ended. Touches nothing: the folder need not exist."""
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
    """Make the folder and take both locks. Yields the descriptor that every child must inherit."""
    run = _folder(data)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        data.chmod(0o700)
        run.mkdir(mode=0o700, exist_ok=True)
        up = os.open(run / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
        children = os.open(run / "children.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # not at the first try: a `ps` may be looking just now
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
    """The url without SQLAlchemy's driver, as psql and psycopg2 read it."""
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
