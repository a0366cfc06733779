"""Checks the URL of a webhook and the addresses that its name resolves to (guard against SSRF). No IO.

A webhook makes this service send requests from inside its network. So the URL must lead to the public internet, and a
URL that libraries could read in two ways is refused.
"""

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

MAX_URL_CHARACTERS: Final = 2000
URL_PATTERN: Final = r"^[Hh][Tt][Tt][Pp][Ss]?://[!-~]+$"

Address = IPv4Address | IPv6Address

_PORTS: Final = {"http": 80, "https": 443}
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_UNICAST: Final = IPv6Network("2000::/3")
# Protocol assignments (with Teredo and ORCHID), documentation and 6to4: none is a plain address of the internet.
_SPECIAL: Final = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
_RELAYS: Final = IPv4Address("192.88.99.0")  # /24, relays of 6to4


class TargetUrl(NamedTuple):
    """The parts of a URL. `host` is a name or an address in its canonical spelling; `target` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def address(self) -> Address | None:
        """Returns the address, or None if the host is a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def header(self) -> str:
        """Returns the value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_target_url(url: str) -> TargetUrl:
    """Returns the parts of a URL. Raises ValueError, with a message for the client, if the URL is not allowed."""
    if len(url) > MAX_URL_CHARACTERS:
        raise ValueError(f"must have at most {MAX_URL_CHARACTERS} characters")
    if not re.fullmatch(URL_PATTERN, url, re.ASCII) or set(url) & set('\\"<>^`{|}'):
        raise ValueError("must be an http or https url, of ASCII (names as xn--...), with all else percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("has a host or a port that cannot be read") from None
    if "@" in parts.netloc or "#" in url:
        raise ValueError("must have no user, password or fragment")
    port = port if port is not None else _PORTS[parts.scheme]
    if port < 1024 and port not in _PORTS.values():
        raise ValueError("must have port 80, 443, or one from 1024 on")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return TargetUrl(parts.scheme, _read_host(parts.hostname or "", "[" in parts.netloc), port, target)


def _read_host(host: str, in_brackets: bool) -> str:
    """Returns a name, or an address as `ipaddress` writes it. Raises ValueError if the host is ambiguous."""
    if in_brackets:
        try:
            return str(IPv6Address("%" if "%" in host else host))  # a zone has a meaning on one machine only
        except ValueError:
            raise ValueError("must have an IPv6 address, without a zone, within brackets") from None
    host = host.removesuffix(".").lower()
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("must have a host: a name, or an address in its usual spelling")
    if _NUMBER.fullmatch(labels[-1]):  # other libraries would read such a host as an IPv4 address
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise ValueError("must have its IPv4 address in the usual spelling, such as 192.0.2.1") from None
    return host


def is_local_name(host: str) -> bool:
    """Returns whether a name is reserved for this machine or network, whatever it resolves to."""
    return "." not in host or host.endswith((".localhost", ".local", ".internal", ".localdomain"))


def is_public(address: Address) -> bool:
    """Returns whether an address is on the public internet. Mapped and NAT64 addresses are judged as IPv4."""
    if isinstance(address, IPv6Address):
        if address in _MAPPED or address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
        return address in _UNICAST and address.is_global and not any(address in network for network in _SPECIAL)
    relay = int(address) >> 8 == int(_RELAYS) >> 8
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified or relay)
