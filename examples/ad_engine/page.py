"""The engine's own HTTP: a page of campaigns, the same as JSON, and the address that webhooks are sent to."""

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
<p>A user's campaign runs while there is money. The one that was switched last stands first.{unread}</p>
<table><tr><th>user</th><th>campaign</th><th class="money">balance</th><th>switched (UTC)</th></tr>
{rows}
</table>
<p class="small">This engine {says}. The page renews itself every two seconds.</p>
</body></html>
"""
UNREAD: Final = " <b>The feed is still being read: not all are here yet.</b>"
NOBODY: Final = '<tr><td colspan="4">Nobody has paid in yet.</td></tr>'
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
        """A delivery: 204 says it is taken in (or known already); anything else has it sent again."""
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

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's word
        """The page asks every two seconds: not a line for each."""


def serve(engine: Engine, port: int) -> ThreadingHTTPServer:
    """Bound to the port; 0: a free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), type("_Handler", (Handler,), {"engine": engine}))


def page(engine: Engine) -> str:
    """The campaign that was switched last on top: that is what one looks for."""
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
