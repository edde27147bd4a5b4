"""Free TCP ports. A module of its own, so that `gaguide doctor` can use it where torch cannot be imported."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A TCP port on which nothing on this machine listens now; another process may take it before you do."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
