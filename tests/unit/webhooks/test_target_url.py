"""Which urls a webhook may have, and which addresses they may lead to."""

from ipaddress import ip_address

import pytest

from shared.webhooks.target_url import is_local_name, is_public, parse_target_url

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254"),
        *("172.16.0.1", "172.31.255.255", "192.168.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1"),
        *("203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
        *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1", "100::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1"),
        *("64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2002:808:808::1"),
        *("2001:0:53aa:64c:0:fbff:f5ff:fffe", "2001:10::1", "2001:20::1", "3fff::1", "5f00::1", "4000::1"),
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "192.167.255.255", "223.255.255.254"),
        *("2606:4700:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
    ],
)
def test_an_address_of_the_public_internet_is_taken(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "header"),
    [
        ("http://example.com", "example.com", 80, "/", "example.com"),
        ("HTTPS://Example.COM./a/b?c=d", "example.com", 443, "/a/b?c=d", "example.com"),
        ("https://example.com:8443/", "example.com", 8443, "/", "example.com:8443"),
        ("http://example.com:/x", "example.com", 80, "/x", "example.com"),
        ("http://192.0.2.7:8080?a", "192.0.2.7", 8080, "/?a", "192.0.2.7:8080"),
        ("https://[2606:4700::0:1]/", "2606:4700::1", 443, "/", "[2606:4700::1]"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example"),
    ],
)
def test_a_url_has_one_reading(url: str, host: str, port: int, target: str, header: str) -> None:
    receiver = parse_target_url(url)
    assert (receiver.host, receiver.port, receiver.target, receiver.header) == (host, port, target, header)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "example.com",
            "ftp://example.com/",
            "file:///etc/passwd",
            "gopher://example.com",
            "javascript:1",
            "http://",
        ),
        *("http:///path", "http:example.com", "https://", "http://:80/", "http://./", "http://example..com/"),
        # spellings of 127.0.0.1 that some resolvers take
        *("http://2130706433/", "http://0177.0.0.1/", "http://0x7f.0.0.1/", "http://0x7f000001/", "http://127.1/"),
        *("http://127.0.1/", "http://017700000001/", "http://127.0.0.01/", "http://127.0.0.0x1/", "http://0/"),
        *("http://1.2.3.4.5/", "http://256.1.1.1/", "http://example.0x/"),
        # what two parsers may read in two ways
        *("http://user@example.com/", "http://user:pw@example.com/", "http://example.com#@10.0.0.1/", "http://a b/"),
        *(
            "http://example.com\\@10.0.0.1/",
            "http://example.com/\r\nHost: x",
            "http://example.com/\t",
            " http://a.example/",
        ),
        *("http://１２７.０.０.１/", "http://ⓛocalhost/", "http://bücher.example/", "http://example。com/"),
        *("http://exa%6dple.com/", "http://[fe80::1%25eth0]/", "http://[::1", "http://::1/", "http://[127.0.0.1]/"),
        *("http://[v1.x]/", "http://-a.example/", f"http://{'a' * 64}.example/", "http://" + "a." * 127 + "example/"),
        # ports of other protocols
        *("http://example.com:22/", "http://example.com:25/", "http://example.com:0/", "http://example.com:65536/"),
        *("http://example.com:port/", "http://example.com:-1/", "http://example.com/" + "a" * 2000),
    ],
)
def test_an_invalid_or_ambiguous_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|has)"):
        parse_target_url(url)


@pytest.mark.parametrize("host", ["localhost", "intranet", "a.localhost", "db.internal", "printer.local"])
def test_a_local_name_is_known_as_one(host: str) -> None:
    assert is_local_name(host)
    assert not is_local_name("example.com")
