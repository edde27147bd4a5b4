"""Ends the job, naming the rank on every host, when a rank is killed (at once) or its host disappears.

Every rank holds a connection to rank 0, over which nothing is sent but a goodbye, or which rank was lost.
The kernel of a killed process closes it; keep-alive probes close that of a host that has gone, after half a
minute. So nobody waits in a collective for a rank that will never come, under launchers that do not look
after their ranks as well.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from gaguide.distributed import World, all_gather, barrier, broadcast
from gaguide.errors import UserError
from gaguide.log import say

EXIT_LOST_RANK = 1
_CONNECT_SECONDS = 10.0
_GOODBYE, _LOST = b".", b"!"
_TOKEN_BYTES = 16
_REMEDY = "finished examples are kept: the same command goes on from them"


@contextmanager
def watched(world: World) -> Iterator[None]:
    """Inside, the loss of any rank ends this process with a message from the lowest rank that is left."""
    if world.size == 1:
        yield
        return
    names = all_gather(f"rank {world.rank} (process {os.getpid()} on {world.host})")
    listener = socket.create_server(("", 0), backlog=world.size) if world.is_main else None
    port, token = broadcast(
        (listener.getsockname()[1], secrets.token_bytes(_TOKEN_BYTES)) if listener is not None else (0, b"")
    )
    if listener is not None:
        peers = _accept(listener, token, world.size - 1)
    else:
        peers = _connect(os.environ.get("MASTER_ADDR", "127.0.0.1"), port, token, world.rank)
    for connection in peers:
        _keep_alive(connection)
    if peers:
        threading.Thread(target=_watch, args=(peers, names, world), daemon=True).start()
    try:
        yield
    except UserError:
        _leave(peers)  # raised on all ranks
        raise
    # Any other error leaves without a goodbye: the others learn it when this process has ended.
    _leave(peers)


def _accept(listener: socket.socket, token: bytes, expected: int) -> dict[socket.socket, int]:
    """Connections by rank; ranks that cannot connect (a firewall) are not watched."""
    peers: dict[socket.socket, int] = {}
    listener.settimeout(_CONNECT_SECONDS)
    with listener, suppress(TimeoutError):
        while len(peers) < expected:
            connection, _ = listener.accept()
            connection.settimeout(_CONNECT_SECONDS)
            with suppress(OSError):
                hello = connection.recv(_TOKEN_BYTES + 4, socket.MSG_WAITALL)
                if hello[:_TOKEN_BYTES] == token:
                    peers[connection] = int.from_bytes(hello[_TOKEN_BYTES:], "big")
                    continue
            connection.close()
    return peers


def _connect(host: str, port: int, token: bytes, rank: int) -> dict[socket.socket, int]:
    try:
        connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
        connection.sendall(token + rank.to_bytes(4, "big"))
    except OSError:
        return {}
    return {connection: 0}


def _keep_alive(connection: socket.socket) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


def _watch(peers: dict[socket.socket, int], names: list[str], world: World) -> None:
    with selectors.DefaultSelector() as selector:
        for connection in peers:
            selector.register(connection, selectors.EVENT_READ, data=connection)
        while selector.get_map():
            for key, _ in selector.select():
                connection = key.data
                lost = _heard(connection, peers[connection])
                if lost is not None:
                    _end(lost, peers, names, world)
                selector.unregister(connection)


def _heard(connection: socket.socket, rank: int) -> int | None:
    """The rank that is lost: the one at the other end, or the one that rank 0 tells of; None is a goodbye."""
    try:
        said = connection.recv(1)
        if said == _GOODBYE:
            return None
        if said == _LOST:
            return int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
    except OSError:
        pass
    return rank


def _end(lost: int, peers: dict[socket.socket, int], names: list[str], world: World) -> NoReturn:
    if world.is_main:
        for connection, rank in peers.items():
            if rank != lost:
                with suppress(OSError):
                    connection.sendall(_LOST + lost.to_bytes(4, "big"))
    # One rank of each host speaks; where it is rank 0 that was lost, rank 1 does.
    if world.local_rank == 0 or world.rank == (1 if lost == 0 else 0):
        say(f"evaluate: {names[lost]} is gone; the evaluation ends; {_REMEDY}", error=True)
    os._exit(EXIT_LOST_RANK)


def _leave(peers: dict[socket.socket, int]) -> None:
    barrier()  # nobody is waited for any more
    for connection in peers:
        with suppress(OSError):
            connection.sendall(_GOODBYE)
    barrier()  # connections close with the process, after all have said goodbye
