"""Sends an answer of unknown length as fast as its client reads it, with a bounded part of it in memory.

granian's own stream takes whatever it is given and keeps it. A file it reads only when the client has read what came
before: so it is given a pipe to read, and whoever fills the pipe waits for room in it.
"""

import asyncio
import os
import select
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

from web.loop import in_thread, switch

OPEN_TIMEOUT_SECONDS: Final = 10.0
OPEN_INTERVAL_SECONDS: Final = 0.001

Headers = list[tuple[str, str]]
_END: Final = object()


def send_stream(protocol: Any, status: int, headers: Headers, pieces: Iterable[bytes]) -> None:
    """Sends the pieces, on the loop. Each is made in a thread: that may block. Ends early where the client has gone."""
    remaining = iter(pieces)
    first = in_thread(next, remaining, _END)
    if sys.platform == "linux":
        _send_by_pipe(protocol, status, headers, first, remaining)
        return
    transport = protocol.response_stream(status, headers)  # elsewhere a pipe has no such path: the memory has no bound
    piece = first
    while piece is not _END:
        switch(transport.send_bytes(piece))
        piece = in_thread(next, remaining, _END)


def _send_by_pipe(protocol: Any, status: int, headers: Headers, first: Any, remaining: Iterator[bytes]) -> None:
    """The server opens the reading end by a path that does not hold it open. So the pipe breaks when the server closes it."""
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
        pass  # the client has gone
    finally:
        os.close(writer)
        os.close(path)


async def _await_reader(writer: int) -> None:
    """Raises BrokenPipeError where the server does not open the pipe: the client went before that."""
    deadline = asyncio.get_running_loop().time() + OPEN_TIMEOUT_SECONDS
    poller = select.poll()
    poller.register(writer, select.POLLOUT)
    while any(event & select.POLLERR for _, event in poller.poll(0)):
        if asyncio.get_running_loop().time() > deadline:
            raise BrokenPipeError
        await asyncio.sleep(OPEN_INTERVAL_SECONDS)


async def _write(writer: int, piece: bytes) -> None:
    """Raises BrokenPipeError."""
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
