"""The port, taken before anything slow begins."""

from __future__ import annotations

import errno
import os
import socket

from octavo.engine.errors import ConfigError

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: who connects from now on waits until the server takes over.

    It listens at once, because two sockets may be bound to one port as long as none does.

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
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_sentence(host, port, error)) from None
    listener.setblocking(False)
    return listener


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
