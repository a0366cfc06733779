"""All settings of all processes, each with its environment variable.

A value comes from the environment or is the default. A secret can also come from a file: DATABASE_URL_FILE names a file
that holds the value of DATABASE_URL. Durations are seconds.
"""

import os
import re
from collections.abc import Mapping
from functools import cache, cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# Containers get these as files, because anyone who can inspect a process can read its environment.
SECRET_VARIABLES: Final = ("DATABASE_URL", "BROKER_URL", "PAYMENTS_KEY")

# USER:PASSWORD@, HOST:PORT (one or several), /DATABASE, and the query after the question mark
_DATABASE_URL: Final = re.compile(r"([^:/?@]*(?::[^@]*)?@)?([^/?@]*)(/[^?]*)?(?:\?(.*))?")
_SERVER: Final = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:\[\]]*)(?::(\d*))?")
_DATABASE_FORM: Final = (
    "postgresql://USER:PASSWORD@HOST:PORT/DATABASE is needed, with HOST:PORT,HOST:PORT for several servers"
)


class Settings(BaseSettings):
    """The settings, read from the environment once per process. The alias of a field is its variable."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, populate_by_name=True, hide_input_in_errors=True)

    # Servers. Without them `./payments up` starts its own.
    database_url: str = Field("", alias="DATABASE_URL", description="Postgres, 15 or newer")
    broker_url: str = Field("", alias="BROKER_URL", description="Redis or Valkey, redis:// or rediss://")

    app_role: str = Field(
        "",
        pattern="^[a-z_][a-z0-9_]{0,62}$|^$",
        alias="PAYMENTS_APP_ROLE",
        description="existing database role of web and workers; migrations grant it only the rights that these need",
    )

    # `./payments up`
    host: str = Field("127.0.0.1", alias="PAYMENTS_HOST", description="address that web listens on")
    port: int = Field(8000, ge=0, le=65535, alias="PAYMENTS_PORT", description="port of web; 0: a free one")
    flower_port: int = Field(
        5555, ge=0, le=65535, alias="PAYMENTS_FLOWER_PORT", description="port of Flower; 0: a free one"
    )
    data: Path = Field(Path(".payments"), alias="PAYMENTS_DATA", description="folder of the embedded servers")
    workers: int = Field(2, ge=1, le=16, alias="PAYMENTS_WORKERS", description="settling processes")

    # `./payments demo` and `./payments example`
    url: str = Field(
        "", alias="PAYMENTS_URL", description="address of the service; if not set, the one that runs on `--data`"
    )
    key: str = Field("", alias="PAYMENTS_KEY", description="API key, if the service requires one", repr=False)

    ads_port: int = Field(
        8010, ge=0, le=65535, alias="PAYMENTS_ADS_PORT", description="port of `./payments example ads`; 0: a free one"
    )

    # Each process
    process: str = Field(
        "payments", alias="PAYMENTS_PROCESS", description="name of the process: the field `process` in the logs"
    )
    log_level: str = Field("info", alias="PAYMENTS_LOG_LEVEL", description="debug, info, warning or error")
    metrics_dir: str = Field(
        "", alias="PROMETHEUS_MULTIPROC_DIR", description="folder where processes share their metrics"
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        alias="PAYMENTS_METRICS_PORT",
        description="port on which a worker serves its metrics, on all addresses; 0: none",
    )
    heartbeat_file: str = Field(
        "", alias="PAYMENTS_HEARTBEAT_FILE", description="touched by the worker while it consumes"
    )
    deaf_seconds: float = Field(
        30, gt=0, alias="PAYMENTS_DEAF_SECONDS", description="a worker that takes no message for so long is restarted"
    )

    # Limits of web
    backlog_limit: int = Field(
        1_000_000, ge=1, alias="PAYMENTS_BACKLOG_LIMIT", description="unparked PENDING rows; above it: 429"
    )
    web_threads: int = Field(
        512,
        ge=160,
        le=2048,
        alias="PAYMENTS_WEB_THREADS",
        description="threads of web for requests that read the database, per process",
    )
    web_connections: int = Field(
        16, ge=2, alias="PAYMENTS_WEB_CONNECTIONS", description="maximum of database connections per process"
    )

    # Access to web, and rates
    auth: str = Field(
        "",
        pattern="^(required|off)?$",
        alias="PAYMENTS_AUTH",
        description="required or off: whether web requires API keys; if not set, it does unless it listens on loopback",
    )
    rate_limit: float = Field(
        0,
        ge=0,
        alias="PAYMENTS_RATE_LIMIT",
        description="requests per second per key (per address if keys are off), per web process; 0: no limit",
    )

    # Webhooks
    notify_slots: int = Field(
        32, ge=8, le=256, alias="PAYMENTS_NOTIFY_SLOTS", description="deliveries to webhooks at once, per process"
    )
    webhook_allow_private: bool = Field(
        False, alias="WEBHOOK_ALLOW_PRIVATE", description="1: webhooks may be on private and loopback addresses"
    )
    webhook_off_days: float = Field(
        7,
        gt=0,
        alias="PAYMENTS_WEBHOOK_OFF_DAYS",
        description="days of failure without a success after which a webhook is disabled",
    )
    event_days: float = Field(
        90,
        gt=0,
        alias="PAYMENTS_EVENT_DAYS",
        description="days that events and successful deliveries are kept; pending deliveries and dead letters stay",
    )

    @cached_property  # read in each request
    def requires_keys(self) -> bool:
        """Returns whether web requires an API key."""
        return self.auth == "required" or (not self.auth and not is_loopback(self.host))

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in SECRET_VARIABLES:
            path = os.environ.get(f"{name}_FILE")
            if not path or os.environ.get(name):  # the plain variable wins: `up` sets it for its processes
                continue
            try:
                values[name] = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{name}_FILE: {getattr(error, 'strerror', None) or 'no text'}") from None
        return values

    @field_validator("broker_url")
    @classmethod
    def _check_broker(cls, url: str) -> str:
        """Returns the URL. Raises ValueError if the libraries of web and of the worker could read it differently.

        An example is ?db=, from which only one of them takes the number of the database.
        """
        if not url or _is_broker_url(url):
            return url
        raise ValueError("redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE] or rediss:// is needed")

    @field_validator("database_url")
    @classmethod
    def _add_driver(cls, url: str) -> str:
        """Returns the URL with the driver psycopg2 and several servers in the common form. Raises ValueError if it is invalid.

        SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3.
        """
        scheme, _, rest = url.partition("://")
        parts = _DATABASE_URL.fullmatch(rest) if scheme.split("+")[0] in ("postgres", "postgresql") else None
        if parts:
            return f"postgresql+psycopg2://{_name_servers(*parts.groups(default=''))}"
        if url:
            raise ValueError(_DATABASE_FORM)
        return url


def _name_servers(user: str, servers: str, database: str, query: str) -> str:
    """Returns the URL with several servers as ?host=A,B&port=5432,5432: libpq, psycopg2 and SQLAlchemy all read it.

    Only libpq reads A:5432,B:5432 before the database, and only SQLAlchemy reads ?host=A:5432&host=B:5432.
    """
    options = query.split("&") if query else []
    named = [option.removeprefix("host=") for option in options if option.startswith("host=")]
    several = servers.split(",") if "," in servers else named if len(named) > 1 else []
    parsed = [_SERVER.fullmatch(server) for server in several or [servers]]
    if not all(parsed):
        raise ValueError(_DATABASE_FORM)
    if several:
        hosts = ",".join(server[1].strip("[]") for server in parsed if server)
        ports = ",".join(server[2] or "5432" for server in parsed if server)
        others = [option for option in options if not option.startswith("host=")]
        servers, query = "", "&".join([f"host={hosts}", f"port={ports}", *others])
    return f"{user}{servers}{database}{query and '?'}{query}"


def _is_broker_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and parts.port != 0 and re.fullmatch(r"(/\d{0,4})?", parts.path)
    except ValueError:  # an invalid port or host
        return False
    has_database_twice = re.search(r"(^|&)db=", parts.query)
    return parts.scheme in ("redis", "rediss") and bool(is_whole) and not has_database_twice and ";" not in url


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach the address. Of names, only localhost is loopback."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class InvalidSettings(SystemExit):
    """Ends a process with one line that names the invalid variables."""


def describe_error(error: ValidationError) -> str:
    """Returns one line that names the errors, without values, because these may hold passwords."""
    return "; ".join(map(_describe, error.errors(include_input=False, include_url=False)))


def _describe(error: Mapping[str, Any]) -> str:
    """Returns one error with the name of its variable. An error without a location names its variables itself."""
    place = "".join(f"{name}: " for name in error["loc"][:1])
    text = str(error["msg"])
    own = text.removeprefix("Value error, ")
    return place + (text.lower() if place and own == text else own)


@cache
def settings() -> Settings:
    """Returns the settings of this process. Raises InvalidSettings, which ends the process, if one is invalid."""
    try:
        return Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        raise InvalidSettings(describe_error(error)) from None
