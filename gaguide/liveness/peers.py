"""Ends an evaluation, naming the rank on every host, when a rank is killed (at once) or its host
disappears.

Every rank holds a connection to rank 0, over which only a goodbye, or the number of a lost rank, is sent.
The kernel of a killed process closes it; keep-alive probes close that of a host that has gone, after half a
minute. So no rank waits in a collective for one that will never come, even under launchers that do not watch
their ranks.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
from contextlib import AbstractContextManager, nullcontext, suppress

from gaguide.distributed import World, all_gather, barrier, broadcast
from gaguide.distributed.launcher import launchers
from gaguide.liveness.monitor import Check, Ending, LauncherCheck, Monitor

EXIT_LOST_RANK = 1
"""Exit code of every rank of an evaluation that lost a rank or its launcher."""

_CONNECT_SECONDS = 10.0
_LAST_LOOK_SECONDS = 2.0
_GOODBYE, _LOST = b".", b"!"
_TOKEN_BYTES = 16
_RANK_BYTES = 4
_REMEDY = "finished examples are kept: the same command resumes from them"


def watch_evaluation(world: World) -> AbstractContextManager[object]:
    """A context in which the loss of a rank or of the launcher ends this process (a collective)."""
    if world.size == 1 and not launchers().processes:
        return nullcontext()

    def lost_launcher(reason: str) -> Ending:
        message = f"evaluate: {reason}; the evaluation ends; {_REMEDY}"
        return Ending(EXIT_LOST_RANK, message if world.local_rank == 0 else None)

    peers = [PeerCheck(world)] if world.size > 1 else []
    return Monitor([LauncherCheck(lost_launcher), *peers])


class PeerCheck(Check):
    """Notices the end of other ranks by their connections.

    Making one connects every rank to rank 0 (a collective); a rank that cannot connect, because of a
    firewall for example, is not watched.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._names = all_gather(f"rank {world.rank} (process {os.getpid()} on {world.host})")
        self._peers = _connect_all(world)
        self._selector: selectors.BaseSelector | None = None

    def start(self, selector: selectors.BaseSelector) -> None:
        """Let traffic on any connection cause a poll."""
        self._selector = selector
        for connection in self._peers:
            selector.register(connection, selectors.EVENT_READ, data=self)

    def poll(self) -> Ending | None:
        """An ending once a rank is lost."""
        return self._read(0)

    def leave(self) -> None:
        """Send a goodbye to every connected rank (a collective)."""
        barrier()  # no rank is waited for from here on
        for connection in self._peers:
            with suppress(OSError):
                connection.sendall(_GOODBYE)
        barrier()  # connections close with the process, after every goodbye was sent

    def close(self, error: BaseException | None) -> Ending | None:
        """After an error, wait a moment for the loss of another rank that may have caused it.

        Without one, the other ranks learn of this rank's end, as no goodbye was sent, when its process is
        gone.
        """
        return None if error is None else self._read(_LAST_LOOK_SECONDS)

    def _read(self, seconds: float) -> Ending | None:
        assert self._selector is not None
        for key, _ in self._selector.select(seconds):
            connection = key.fileobj
            if key.data is self and isinstance(connection, socket.socket):
                lost = _lost_rank(connection, self._peers[connection])
                if lost is not None:
                    return self._end(lost)
                self._selector.unregister(connection)
        return None

    def _end(self, lost: int) -> Ending:
        if self._world.is_main:
            for connection, rank in self._peers.items():
                if rank != lost:
                    with suppress(OSError):
                        connection.sendall(_LOST + lost.to_bytes(_RANK_BYTES, "big"))
        # One rank of each host prints; where rank 0 was lost, rank 1 does as well.
        prints = self._world.local_rank == 0 or self._world.rank == (1 if lost == 0 else 0)
        message = f"evaluate: {self._names[lost]} is gone; the evaluation ends; {_REMEDY}"
        return Ending(EXIT_LOST_RANK, message if prints else None)


def _connect_all(world: World) -> dict[socket.socket, int]:
    """Connections, each with the rank at its other end: to all ranks on rank 0, to rank 0 on the others."""
    listener = socket.create_server(("", 0), backlog=world.size) if world.is_main else None
    offer = (
        (listener.getsockname()[1], secrets.token_bytes(_TOKEN_BYTES)) if listener is not None else (0, b"")
    )
    port, token = broadcast(offer)
    if listener is not None:
        peers = _accept(listener, token, world.size - 1)
    else:
        peers = _connect(os.environ.get("MASTER_ADDR", "127.0.0.1"), port, token, world.rank)
    for connection in peers:
        _keep_alive(connection)
    return peers


def _accept(listener: socket.socket, token: bytes, expected: int) -> dict[socket.socket, int]:
    peers: dict[socket.socket, int] = {}
    listener.settimeout(_CONNECT_SECONDS)
    with listener, suppress(TimeoutError):
        while len(peers) < expected:
            connection, _ = listener.accept()
            connection.settimeout(_CONNECT_SECONDS)
            with suppress(OSError):
                hello = connection.recv(_TOKEN_BYTES + _RANK_BYTES, socket.MSG_WAITALL)
                if hello[:_TOKEN_BYTES] == token:
                    peers[connection] = int.from_bytes(hello[_TOKEN_BYTES:], "big")
                    continue
            connection.close()
    return peers


def _connect(host: str, port: int, token: bytes, rank: int) -> dict[socket.socket, int]:
    try:
        connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
        connection.sendall(token + rank.to_bytes(_RANK_BYTES, "big"))
    except OSError:
        return {}
    return {connection: 0}


def _keep_alive(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


def _lost_rank(connection: socket.socket, rank: int) -> int | None:
    """The rank that is lost: that of the connection, or the one that rank 0 names; None after a goodbye."""
    try:
        received = connection.recv(1)
        if received == _GOODBYE:
            return None
        if received == _LOST:
            return int.from_bytes(connection.recv(_RANK_BYTES, socket.MSG_WAITALL), "big")
    except OSError:
        pass
    return rank
