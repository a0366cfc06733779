"""Which addresses of a broker the settings take: those that web's library and the worker's read alike."""

import pytest
from pydantic import ValidationError

from shared.settings import InvalidSettings, Settings, describe_error, settings

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://host",
        "redis://host:6379/15",
        "redis://:secret@10.0.0.1:6379/0",
        "redis://user:se%2Fcret@[::1]:6379/0",
        "rediss://host:6380/0?ssl_cert_reqs=required",
    ],
)
def test_an_address_that_web_and_worker_read_alike_is_taken(url: str) -> None:
    assert Settings(broker_url=url).broker_url == url


@pytest.mark.parametrize(
    "url",
    [
        "unix:///tmp/redis.sock",
        "redis+socket:///tmp/redis.sock",
        "amqp://guest:secret@host//",
        "memory://",
        "sentinel://host:26379/0",
        "host:6379",
        "redis://",
        "redis:///0",
        "redis://host/name",
        "redis://host:99999/0",
        "redis://host:secret/0",
        "redis://:secret@host/0?db=3",
        "redis://:secret@host/0;redis://other/0",
        "redis://[::1/0",
    ],
)
def test_any_other_address_is_refused_in_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(broker_url=url)
    assert "secret" not in describe_error(raised.value)
    monkeypatch.setenv("BROKER_URL", url)
    settings.cache_clear()
    with pytest.raises(InvalidSettings) as ended:
        settings()
    monkeypatch.undo()
    settings.cache_clear()
    assert str(ended.value) == "BROKER_URL: redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE] or rediss:// is needed"
