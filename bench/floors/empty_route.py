"""The floor of HTTP: a Flask application with one route that does nothing, on the server of web."""

import itertools
from typing import Any

from flask import Flask, Response

from bench.floors.serving import serve
from bench.generator import closed_loop
from bench.loads import CONNECTIONS, LONE_REQUESTS, payments
from bench.plan import Run, Values
from bench.stack import server
from shared.processes import die_with_parent


def application() -> Any:
    die_with_parent()
    app = Flask("empty")

    @app.put("/api/transaction/")
    def nothing() -> Response:
        return Response(b"{}", mimetype="application/json")

    return app


def measure(run: Run) -> Values:
    """The same requests, so the same bytes to read."""
    with server("bench.floors.empty_route", run.log("empty_route")) as address:
        closed_loop(address, payments([1]), CONNECTIONS, run.plan.seconds / 5)  # its threads start
        loaded = closed_loop(address, payments([1]), CONNECTIONS, run.plan.side_seconds)
        alone = closed_loop(address, itertools.islice(payments([1]), LONE_REQUESTS), 1, 60)
    return {"empty_route_per_s": loaded.rate, "empty_route_lone_p50_ms": alone.percentile(50) * 1000}


if __name__ == "__main__":
    serve("bench.floors.empty_route:application")
