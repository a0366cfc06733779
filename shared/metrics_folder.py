"""Reads the folder through which processes share their metrics. Apart from shared.metrics, which opens files there."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, multiprocess


class FolderCollector(multiprocess.MultiProcessCollector):
    """Reads the files of all processes, except files that are still empty.

    A process creates its file first and sizes it then. The library fails on a file that it reads in between, or that a
    process left so when it was killed.
    """

    def __init__(self, registry: CollectorRegistry, folder: str | None = None) -> None:
        super().__init__(registry, folder)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Any]:
        """Returns the metrics, added up over the processes."""
        files = []
        for path in Path(self._path).glob("*.db"):
            with suppress(FileNotFoundError):
                if path.stat().st_size:
                    files.append(str(path))
        metrics: Iterable[Any] = self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
        return metrics
