"""The port, taken before anything slow begins."""

from __future__ import annotations

import errno
import os
import resource
import socket
from pathlib import Path

from octavo.engine.errors import ConfigError

_BACKLOG = 2048
_FILES_OF_OURS = 64  # beside what is open at the start: pipes of helpers, files being read, sockets
_FEWEST_CONNECTIONS = 8
_MOST_CONNECTIONS = 1 << 16  # unless the operator asks for more: each takes some memory


def listen(host: str, port: int, *, unread_seconds: float) -> socket.socket:
    """A listening socket: who connects from now on waits until the server takes over.

    It listens at once, because two sockets may be bound to one port as long as none does. Of its
    connections Linux ends those whose client takes nothing of what is sent for `unread_seconds`,
    whatever the server itself is doing (RFC 5482; TCP alone would wait for ever).

    Raises:
        ConfigError: the port is in use, or the address is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"--host {host} cannot be resolved: {error.strerror}.") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = max(1, round(1000 * unread_seconds))
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_sentence(host, port, error)) from None
    listener.setblocking(False)
    return listener


def connection_limit(wanted: int | None) -> int:
    """How many connections may be open at the same time; raises the soft limit of open files.

    Args:
        wanted: by the operator; None: as many as open files allow.

    Raises:
        ConfigError: so many are not possible, or next to none are.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = _MOST_CONNECTIONS * 2
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    possible = most - len(list(Path("/dev/fd").iterdir())) - _FILES_OF_OURS
    if possible < max(_FEWEST_CONNECTIONS, wanted or 0):
        raise ConfigError(
            f"{most} open files are allowed to this process, which leaves {max(possible, 0)} for "
            f"connections; raise the limit (ulimit -n, LimitNOFILE=)"
            + (f", or --max-connections {wanted} must be lower." if wanted else ".")
        )
    return wanted or min(possible, _MOST_CONNECTIONS)


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{here}:{port}"


def _sentence(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"Port {port} on {host} is in use; stop what uses it, or choose another --port."
        case errno.EACCES:
            return f"Port {port} may not be taken by this user; choose a --port from 1024 on."
        case errno.EADDRNOTAVAIL:
            return f"--host {host} is not an address of this machine."
    return f"{host}:{port} cannot be listened on: {os.strerror(error.errno or 0)}."
