"""Addresses and ports: which are allowed, free, and answering."""

import http.client
import ipaddress
import random
import socket
from urllib.parse import urlsplit

from local.command import CommandError

# Below the ports that kernels give to outgoing connections. There, while a server is being restarted, a client that
# tries its port again and again can be given that same port and connect to itself, and the server cannot come back.
FREE_PORTS = range(20_000, 30_000)
PROBE_TIMEOUT_SECONDS = 1.0


def check_host(host: str) -> None:
    try:
        if host != "localhost":
            ipaddress.ip_address(host)
    except ValueError:
        raise CommandError(f"--host {host}: not an address") from None


def claim_port(host: str, port: int, option: str) -> int:
    """The port if it is free, or a free one for 0."""
    if port == 0:
        return free_port(host)
    if (reason := _reason_taken(host, port)) is not None:
        raise CommandError(f"port {port} of {host} cannot be used ({reason}): choose another with {option}")
    return port


def free_port(host: str = "127.0.0.1") -> int:
    for port in random.sample(FREE_PORTS, 100):
        if _reason_taken(host, port) is None:
            return port
    raise CommandError(f"no free port on {host} between {FREE_PORTS.start} and {FREE_PORTS.stop}")


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def responds(host: str, port: int, path: str) -> bool:
    """Whether GET gives 200. Not urllib: a proxy variable must not send it elsewhere."""
    connection = http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def without_password(url: str) -> str:
    parts = urlsplit(url)
    user, _, address = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return parts._replace(netloc=f"{name}@{address}" if name else address).geturl()


def _reason_taken(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        # as the servers do: connections of an earlier run that are still closing do not take a port
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None
