"""DATABASE_URL: what is read, and as what. Several servers are written so that libpq, psycopg2 and SQLAlchemy agree."""

from pathlib import Path

import pytest
from psycopg2.extensions import parse_dsn  # type: ignore[import-untyped]
from pydantic import ValidationError
from sqlalchemy import create_engine, make_url

from local.command import CommandError
from local.commands.psql import find_psql
from local.stack.run_state import plain_url
from shared.settings import Settings

pytestmark = pytest.mark.unit

SEVERAL = [
    "postgresql://pay:s%40crt@a:5432,b:5433,c/books?target_session_attrs=read-write",
    "postgresql://pay:s%40crt@/books?host=a:5432&host=b:5433&host=c&target_session_attrs=read-write",
    "postgresql+psycopg2://pay:s%40crt@/books?target_session_attrs=read-write&host=a,b,c&port=5432,5433,5432",
]


@pytest.mark.parametrize("url", SEVERAL, ids=["of libpq", "of SQLAlchemy", "of both"])
def test_several_servers_are_read_alike_by_all(url: str) -> None:
    normal = Settings(database_url=url).database_url
    expected = {
        "user": "pay",
        "password": "s@crt",
        "dbname": "books",
        "target_session_attrs": "read-write",
        "host": "a,b,c",
        "port": "5432,5433,5432",
    }
    assert create_engine(normal).dialect.create_connect_args(make_url(normal))[1] == expected
    assert parse_dsn(plain_url(normal)) == expected


def test_addresses_of_ip_6_may_be_among_them() -> None:
    normal = Settings(database_url="postgresql://pay@[::1]:5432,[fe80::1]/books").database_url
    assert parse_dsn(plain_url(normal)) == {
        "user": "pay",
        "dbname": "books",
        "host": "::1,fe80::1",
        "port": "5432,5432",
    }


@pytest.mark.parametrize(
    "rest",
    ["pay:secret@a:5432/books?sslmode=require", "pay@[::1]:5432/books", "pay@/books?host=/run/x", "pay:a/b?c@a/books"],
)
def test_one_server_stays_as_it_is_written(rest: str) -> None:
    assert Settings(database_url=f"postgresql://{rest}").database_url == f"postgresql+psycopg2://{rest}"


@pytest.mark.parametrize(
    "url",
    [
        *("mysql://pay:secret@a/books", "a:5432/books", "postgresql:secret"),
        *("postgresql://pay:secret@a:port/books", "postgresql://pay:secret@a:5432,b:port/books"),
    ],
)
def test_what_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(database_url=url)
    (error,) = raised.value.errors(include_input=False)
    assert error["loc"] == ("DATABASE_URL",) or error["loc"] == ("database_url",)
    assert "HOST:PORT,HOST:PORT for several servers" in error["msg"]
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full"])
def test_where_tls_is_demanded_psql_is_that_of_the_path(
    sslmode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match="the wheel's psql has no TLS"):
        find_psql(sslmode)
    program = tmp_path / "psql"
    program.touch(0o755)
    assert find_psql(sslmode) == str(program)
    assert find_psql("") != str(program), "without it, the wheel's: of the server's own version"
