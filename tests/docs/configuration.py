"""Writes docs/configuration.md from shared/settings.py: `python -m tests.docs.configuration`. A test compares the two."""

from pathlib import Path
from typing import Final

from shared.settings import SECRET_VARIABLES, Settings

PAGE: Final = Path(__file__).parents[2] / "docs" / "configuration.md"

INTRODUCTION: Final = """\
# Configuration

For whoever runs the service. Each setting is an environment variable. There is no configuration file. This page is generated
from [shared/settings.py](../shared/settings.py); after a change there run `.venv/bin/python -m tests.docs.configuration`.

A value that is not valid ends the process at its start, with one line that names the variable and does not show the value.
Durations are in seconds unless the name says days.

| variable | default | meaning |
|---|---|---|
"""


def render_page() -> str:
    """Returns the page, as Markdown."""
    rows = [
        f"| `{field.alias}` | {f'`{field.default}`' if str(field.default) else ''} | {field.description} |\n"
        for field in Settings.model_fields.values()
    ]
    return INTRODUCTION + "".join(rows) + _describe_secrets()


def _describe_secrets() -> str:
    *others, last = [f"`{name}`" for name in SECRET_VARIABLES]
    return f"""
## Secrets from files

{", ".join(others)} and {last} may be read from files. For example, set `{SECRET_VARIABLES[0]}_FILE` to the path of a file that contains the
value. If both variables are set, `{SECRET_VARIABLES[0]}` is used.

## Which servers are used

If `DATABASE_URL` or `BROKER_URL` is set, `./payments up` uses that server and does not start its own. `DATABASE_URL` may name
several servers; see [Failover of Postgres](operations/runbook.md#failover-of-postgres).

`PAYMENTS_APP_ROLE` names the database role of all processes but the migrations. The owner of the database runs the migrations, and
they grant this role what it needs. The role cannot change the past: see [security](operations/security.md).
"""


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
