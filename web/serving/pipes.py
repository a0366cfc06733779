"""Sends a response of unknown length as fast as its client reads it, with bounded memory.

granian's own stream buffers without a limit. But granian reads a file only as fast as the client reads the response.
So it gets a pipe as that file, and the writer waits while the pipe is full.
"""

import asyncio
import os
import select
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

from web.serving.loop import in_thread, switch

OPEN_TIMEOUT_SECONDS: Final = 10.0
OPEN_INTERVAL_SECONDS: Final = 0.001

Headers = list[tuple[str, str]]
_END: Final = object()


def send_stream(protocol: Any, status: int, headers: Headers, pieces: Iterable[bytes]) -> None:
    """Sends the pieces, on the loop. Each is computed in a thread, because that may block.

    Ends early if the client closes the connection.
    """
    remaining = iter(pieces)
    first = in_thread(next, remaining, _END)
    if sys.platform == "linux":
        _send_by_pipe(protocol, status, headers, first, remaining)
        return
    # Other systems have no path for a pipe, so there the memory has no bound.
    transport = protocol.response_stream(status, headers)
    piece = first
    while piece is not _END:
        switch(transport.send_bytes(piece))
        piece = in_thread(next, remaining, _END)


def _send_by_pipe(protocol: Any, status: int, headers: Headers, first: Any, remaining: Iterator[bytes]) -> None:
    """Sends the pieces through a pipe. granian opens its reading end by a path.

    The path itself (O_PATH) does not keep the reading end open, so the pipe breaks when granian closes its end.
    """
    reader, writer = os.pipe()
    path = os.open(f"/proc/self/fd/{reader}", os.O_PATH)
    os.close(reader)
    try:
        os.set_blocking(writer, False)
        protocol.response_file(status, headers, f"/proc/self/fd/{path}")
        switch(_await_reader(writer))
        piece = first
        while piece is not _END:
            switch(_write(writer, piece))
            piece = in_thread(next, remaining, _END)
    except BrokenPipeError:
        pass  # the client has closed the connection
    finally:
        os.close(writer)
        os.close(path)


async def _await_reader(writer: int) -> None:
    """Waits until granian opens the pipe. Raises BrokenPipeError if it does not: the client has gone before."""
    deadline = asyncio.get_running_loop().time() + OPEN_TIMEOUT_SECONDS
    poller = select.poll()
    poller.register(writer, select.POLLOUT)
    while any(event & select.POLLERR for _, event in poller.poll(0)):
        if asyncio.get_running_loop().time() > deadline:
            raise BrokenPipeError
        await asyncio.sleep(OPEN_INTERVAL_SECONDS)


async def _write(writer: int, piece: bytes) -> None:
    """Writes a piece, and waits whenever the pipe is full. Raises BrokenPipeError if the client has gone."""
    rest = memoryview(piece)
    while rest:
        try:
            rest = rest[os.write(writer, rest) :]
        except BlockingIOError:
            await _await_room(writer)


async def _await_room(writer: int) -> None:
    loop = asyncio.get_running_loop()
    room: asyncio.Future[None] = loop.create_future()
    loop.add_writer(writer, _note, room)
    try:
        await room
    finally:
        loop.remove_writer(writer)


def _note(room: "asyncio.Future[None]") -> None:
    if not room.done():
        room.set_result(None)
