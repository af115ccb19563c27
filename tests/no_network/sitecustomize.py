"""Python runs this at the start of every process of the tests: nothing may leave this machine.

It is found by PYTHONPATH, which conftest.py sets, so that it also holds in the processes that a test starts.
"""

import socket
from typing import Any

LOOPBACK = ("127.", "::1", "localhost")


class NetworkReachedFor(BaseException):
    """Something reached for the network. Not an Exception: offline code swallows those."""


def _forbid(host: Any) -> None:
    if host and not str(host).startswith(LOOPBACK):
        raise NetworkReachedFor(f"a connection to {host!r}, or a look-up of it, was tried")


def _guarded(original: Any) -> Any:
    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _forbid(address[0])
        return original(self, address)

    return connect


def install() -> None:
    """Guard this process; a second call changes nothing."""
    if getattr(socket, "is_guarded", False):
        return
    socket.is_guarded = True
    socket.socket.connect = _guarded(socket.socket.connect)
    socket.socket.connect_ex = _guarded(socket.socket.connect_ex)
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        _forbid(host)
        return look_up(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo


install()
