"""Ask a running Prometheus all that the dashboard and the alerts ask, and say what has an answer.

    python tests/deploy/ask_dashboard.py http://127.0.0.1:9090

An alert without an answer does not fire. A panel without one is named in the last line; exit code 1 where a query is
wrong. It takes a Prometheus that scrapes a service with some load on it, and has the alerts for its rules: see
docs/operations/runbook.md, "Try it".
"""

import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

MONITORING = Path(__file__).parents[2] / "k8s" / "components" / "monitoring"
VARIABLES = {"$__rate_interval": "1m"}


def main() -> int:
    prometheus = sys.argv[1].rstrip("/")
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    wrong, silent = 0, []
    for panel in panels:
        for target in panel.get("targets", ()):
            series, error = ask(prometheus, target["expr"])
            wrong += error is not None
            if not series:
                silent.append(f"{panel['title']} {target['refId']}")
            print(
                f"panel  {panel['title'][:28]:<28} {target['refId']} {series:>3} series {error or first(prometheus, target['expr'])}"
            )
    for rule in json.loads(urlopen(f"{prometheus}/api/v1/rules", timeout=10).read())["data"]["groups"]:
        for alert in rule["rules"]:
            series, error = ask(prometheus, alert["query"])
            wrong += error is not None or alert["health"] == "err"
            print(f"alert  {alert['name']:<30} {alert['state']:<9} {series:>3} series {error or ''}")
    print(f"without an answer: {', '.join(silent) or 'none'}; wrong: {wrong}")
    return 1 if wrong else 0


def ask(prometheus: str, expression: str) -> tuple[int, str | None]:
    """How many series answer, or what is wrong with the question."""
    try:
        return len(query(prometheus, expression)), None
    except HTTPError as error:
        return 0, json.loads(error.read())["error"]


def first(prometheus: str, expression: str) -> str:
    found = query(prometheus, expression)
    return re.sub(r"\s+", " ", f"{found[0]['metric']} {found[0]['value'][1]}")[:90] if found else ""


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    with urlopen(f"{prometheus}/api/v1/query?{urlencode({'query': expression})}", timeout=10) as answer:
        return json.load(answer)["data"]["result"]


if __name__ == "__main__":
    sys.exit(main())
