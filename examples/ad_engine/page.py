"""The engine's HTTP server: a page of campaigns, the same as JSON, and the address that receives webhooks."""

import json
from decimal import Decimal
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from examples.ad_engine.engine import Engine
from examples.ad_engine.service import Forged

HOOK_PATH: Final = "/payments-webhook"
MAX_HOOK_BYTES: Final = 64 * 1024

PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2"><title>Campaigns</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
h1 {{ margin-bottom: 0 }}
table {{ border-collapse: collapse; width: 100%; margin-top: 1.5rem }}
th, td {{ text-align: left; padding: .4rem .8rem; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }}
th {{ font-weight: 400; color: #666 }}
.money {{ text-align: right }}
.on {{ color: #06691f; font-weight: 600 }}
.on::before {{ content: "● " }}
.off {{ color: #a11212 }}
.off::before {{ content: "○ " }}
.small {{ color: #666; font-size: 85% }}
</style></head><body>
<h1>{on} of {all} campaigns run</h1>
<p>A user's campaign runs while the balance is positive. The campaign that was switched last comes first.{unread}</p>
<table><tr><th>user</th><th>campaign</th><th class="money">balance</th><th>switched (UTC)</th></tr>
{rows}
</table>
<p class="small">This engine {says}. The page reloads every two seconds.</p>
</body></html>
"""
UNREAD: Final = " <b>The engine still reads the feed, so the list is not complete yet.</b>"
NOBODY: Final = '<tr><td colspan="4">There is no deposit yet.</td></tr>'
ROW: Final = '<tr><td>{user_id}</td><td class="{word}">{word}</td><td class="money">{balance}</td><td>{since}</td></tr>'


class Handler(BaseHTTPRequestHandler):
    engine: Engine

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(200, "text/html; charset=utf-8", page(self.engine))
        elif self.path == "/campaigns.json":
            self._answer(200, "application/json", json.dumps(self.engine.campaigns.listed()))
        else:
            self._answer(404, "text/plain", "nothing here")

    def do_POST(self) -> None:
        """Receives a delivery. 204 confirms it, even if it was known. After any other status it is sent again."""
        length = self.headers.get("Content-Length", "")
        if self.path != HOOK_PATH or not length.isdecimal() or int(length) > MAX_HOOK_BYTES:
            return self._answer(404, "text/plain", "nothing here")
        try:
            self.engine.receive(dict(self.headers.items()), self.rfile.read(int(length)))
        except Forged as error:
            return self._answer(401, "text/plain", str(error))
        return self._answer(204, "text/plain", "")

    def _answer(self, status: int, media: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Does nothing: the page reloads every two seconds, and a line for each would be noise."""


def serve(engine: Engine, port: int) -> ThreadingHTTPServer:
    """Returns a server that listens on the port of 127.0.0.1; on a free one if `port` is 0."""
    return ThreadingHTTPServer(("127.0.0.1", port), type("_Handler", (Handler,), {"engine": engine}))


def page(engine: Engine) -> str:
    """Returns the page as HTML. The campaign that was switched last comes first."""
    campaigns = sorted(engine.campaigns.listed(), key=lambda campaign: str(campaign["changed_at"]), reverse=True)
    rows = [
        ROW.format(
            user_id=c["user_id"],
            word="on" if c["on"] else "off",
            balance=f"{Decimal(str(c['balance'])):,}",
            since=escape(str(c["changed_at"])[:19].replace("T", " ")),
        )
        for c in campaigns
    ]
    on = sum(bool(c["on"]) for c in campaigns)
    unread = "" if engine.caught_up else UNREAD
    return PAGE.format(
        on=on, all=len(campaigns), says=escape(engine.says), rows="\n".join(rows) or NOBODY, unread=unread
    )
