"""A receiver of webhooks for the benchmark, a process of its own: POST /well is answered at once, POST /hangs never.

GET /got tells when each transaction was first heard of: {uid: seconds of the machine's monotonic clock}; GET /got-each, of
each time: {uid: [seconds]}.
"""

import argparse
import asyncio
import json
import time
from asyncio import StreamReader, StreamWriter

NO_CONTENT = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"

_got: dict[str, list[float]] = {}


async def _serve(reader: StreamReader, writer: StreamWriter) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        writer.write(await _answer(head, reader))
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the sender has given up
    finally:
        writer.close()


async def _answer(head: str, reader: StreamReader) -> bytes:
    method, path, _ = head.split(" ", 2)
    if method == "GET":
        body = json.dumps(_got if path == "/got-each" else {uid: times[0] for uid, times in _got.items()}).encode()
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    lengths = [line for line in head.lower().split("\r\n") if line.startswith("content-length:")]
    told = json.loads(await reader.readexactly(int(lengths[0].partition(":")[2])))
    if path == "/hangs":
        await reader.read()  # until the sender hangs up
        return b""
    _got.setdefault(told["data"]["transaction"]["uid"], []).append(time.monotonic())
    return NO_CONTENT


async def _run(port: int) -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_run(parser.parse_args().port))
