"""A server that listens until it is told to end."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import uvicorn
from fastapi import FastAPI

from steer.errors import SteerError

# Of the addresses of a name, such as localhost, a machine may lack those of a family.
_LACKING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Take an address before the slow part; nobody is let in before `listen`.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.

    Yields:
        A socket for each address of the host; they are closed when the block is left.

    Raises:
        SteerError: If the machine has no such address, or it is in use.
    """
    with ExitStack() as stack:
        try:
            sockets = _sockets(host, port, stack)
        except OSError as error:
            raise SteerError(
                f"cannot listen on {host}, port {port}: {error.strerror}; name another with --host "
                "or --port, or end what listens there"
            ) from error
        yield sockets


def _sockets(host: str, port: int, stack: ExitStack) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    lacking: OSError | None = None
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in addresses:
        try:
            one = stack.enter_context(socket.socket(family, kind, protocol))
            if os.name == "posix":  # elsewhere it would take a port from who has it
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
        except OSError as error:
            if error.errno not in _LACKING:
                raise
            lacking = error
        else:
            sockets.append(one)
    if not sockets and lacking is not None:
        raise lacking
    return sockets


def listen(application: FastAPI, sockets: Sequence[socket.socket], shutdown_seconds: float) -> None:
    """Run an application until it is told to end.

    Args:
        application: Of `steer.serve.app.create_app`.
        sockets: Of `bound`.
        shutdown_seconds: That answers in flight have when it ends.
    """
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(shutdown_seconds),
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(list(sockets))
