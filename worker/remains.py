"""What a worker that was killed leaves behind: its heartbeat, and a temporary folder. Cleared when the next one starts."""

import atexit
import multiprocessing.process
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from shared.settings import settings
from worker import waiting

PREFIX: Final = "payments-worker-"
_NAME: Final = re.compile(rf"{PREFIX}(\d+)-")


def clear() -> None:
    """Remove the heartbeat, which must not be there until this worker is ready, and the folders of dead workers."""
    if settings().heartbeat_file:
        Path(settings().heartbeat_file).unlink(missing_ok=True)
    if waited := waiting.file():
        waited.unlink(missing_ok=True)
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        name = _NAME.match(folder.name)
        if name and not _is_another_process(int(name[1])):
            shutil.rmtree(folder, ignore_errors=True)
    _use_own_folder()


def _use_own_folder() -> None:
    """Let the pool keep its temporary files where the next worker finds them, by a name that tells whose they are."""
    folder, owner = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"), os.getpid()
    multiprocessing.process.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]  # else a pymp-... that nobody knows

    def remove() -> None:
        if os.getpid() == owner:  # not in what it has forked
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)


def _is_another_process(pid: int) -> bool:
    """Whether a process other than this one has the pid. In a container every worker has the same."""
    if pid == os.getpid():
        return False
    with suppress(ProcessLookupError):
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        return True
    return False
