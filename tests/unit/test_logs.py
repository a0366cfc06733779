"""Lines in batches: all of them, whole, in order; bad news at once; a reader that stalls costs lines, not requests."""

import json
import os
from collections.abc import Iterator

import pytest

from shared import logs

pytestmark = pytest.mark.unit


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_lines_are_written_whole_in_order_and_many_at_once(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda _descriptor, piece: written.append(piece))
    lines = logs._Lines(pipe[1])
    sent = [json.dumps({"number": number, "text": "x" * 300}) for number in range(100)]
    for line in sent:
        lines.put(line)
    lines.flush()
    assert b"".join(written).decode().splitlines() == sent
    assert all(len(piece) <= logs.MAX_ATOMIC_WRITE_BYTES and piece.endswith(b"\n") for piece in written)
    assert len(written) < 15


def test_a_line_that_is_longer_than_a_piece_is_written_too(pipe: tuple[int, int]) -> None:
    lines = logs._Lines(pipe[1])
    lines.put("y" * 10_000)
    lines.put("z")
    lines.flush()
    assert os.read(pipe[0], 20_000) == b"y" * 10_000 + b"\nz\n"


def test_warnings_are_flushed_at_once_and_in_order(pipe: tuple[int, int]) -> None:
    logger = logs._BatchingLogger("web", logs._Lines(pipe[1]))
    logger.info("a")
    logger.warning("b")
    assert os.read(pipe[0], 100) == b"a\nb\n"


def test_good_news_is_written_soon(pipe: tuple[int, int]) -> None:
    lines = logs._Lines(pipe[1])
    lines.start()
    lines.put("a")
    os.set_blocking(pipe[0], True)
    assert os.read(pipe[0], 100) == b"a\n"


def test_what_no_reader_takes_is_dropped_and_counted(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BUFFERED_LINES", 3)
    lines = logs._Lines(pipe[1])
    for number in range(10):
        lines.put(str(number))
    lines.flush()
    *kept, last = os.read(pipe[0], 10_000).decode().splitlines()
    assert kept == ["0", "1", "2"]
    assert (json.loads(last)["event"], json.loads(last)["count"]) == ("log lines dropped", 7)
