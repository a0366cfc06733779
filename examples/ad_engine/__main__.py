"""`python -m examples.ad_engine --url http://127.0.0.1:8000`: runs the advertising engine until a signal stops it."""

import os
import signal
import sys
import threading
from argparse import ArgumentParser
from contextlib import suppress

from examples.ad_engine.engine import Engine
from examples.ad_engine.page import HOOK_PATH, serve
from examples.ad_engine.service import NoAnswer, Service


def main() -> int:
    parser = ArgumentParser("ad_engine", description="Runs each campaign while its user's balance is positive.")
    parser.add_argument("--url", required=True, help="address of the payment service")
    parser.add_argument("--port", type=int, default=8010, help="port of the page on 127.0.0.1; 0 picks a free one")
    args = parser.parse_args()
    engine, stop = Engine(Service(args.url, os.environ.get("PAYMENTS_KEY", ""))), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = serve(engine, args.port)
    except OSError as error:
        return _fail(f"port {args.port} cannot be used: {error.strerror}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        engine.subscribe(address + HOOK_PATH)
        engine.catch_up()
        print(f"ads {address} {engine.says}", flush=True)
        engine.follow(stop)
    except NoAnswer as error:
        return _fail(str(error))
    finally:
        with suppress(NoAnswer):
            engine.unsubscribe()
        server.shutdown()
    return 0


def _fail(line: str) -> int:
    print(f"ads: {line}", file=sys.stderr)
    return 1


sys.exit(main())
