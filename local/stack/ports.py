"""Addresses and ports: checks that they are valid and free, and that a server answers."""

import http.client
import ipaddress
import random
import socket
from urllib.parse import urlsplit

from local.command import CommandError

# Below the ports that kernels use for outgoing connections. In that range a client that retries while its server
# restarts can get the server's port as its own, connect to itself, and block the server.
FREE_PORTS = range(20_000, 30_000)
PROBE_TIMEOUT_SECONDS = 1.0


def check_host(host: str) -> None:
    """Raises CommandError if the host is neither localhost nor an IP address."""
    try:
        if host != "localhost":
            ipaddress.ip_address(host)
    except ValueError:
        raise CommandError(f"--host {host}: not an address") from None


def claim_port(host: str, port: int, option: str) -> int:
    """Returns the port if it is free, or a free port for 0. Raises CommandError, which names the option."""
    if port == 0:
        return free_port(host)
    if (reason := _reason_taken(host, port)) is not None:
        raise CommandError(f"port {port} of {host} cannot be used ({reason}): choose another with {option}")
    return port


def free_port(host: str = "127.0.0.1") -> int:
    """Returns a free port of the host. Raises CommandError if there is none."""
    for port in random.sample(FREE_PORTS, 100):
        if _reason_taken(host, port) is None:
            return port
    raise CommandError(f"no free port on {host} between {FREE_PORTS.start} and {FREE_PORTS.stop}")


def url_of(host: str, port: int) -> str:
    """Returns the http url of a host and port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def responds(host: str, port: int, path: str) -> bool:
    """Returns whether GET responds with 200. Does not use urllib, which follows the variables of proxies."""
    connection = http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def without_password(url: str) -> str:
    """Returns the url without its password."""
    parts = urlsplit(url)
    user, _, address = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return parts._replace(netloc=f"{name}@{address}" if name else address).geturl()


def _reason_taken(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        # As the servers do: then closing connections of an earlier run do not block the port.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None
