"""The interface by which other hosts reach this host.

gloo listens on the address that the host's own name resolves to. Where that is loopback (Debian writes
`127.0.1.1 NAME` into /etc/hosts), other hosts would connect to themselves, and all ranks would wait.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping

import psutil


def gloo_interface(environ: Mapping[str, str], others: Iterable[str]) -> str | None:
    """The interface to set as GLOO_SOCKET_IFNAME, or None where gloo finds the right one by default.

    `others` are names or addresses of hosts of this run, the master first.
    """
    others = list(others)
    if environ.get("GLOO_SOCKET_IFNAME") or not any(map(_is_remote, others)):
        return None
    own = _addresses(socket.gethostname())
    if own and not own[0].is_loopback:
        return None
    return _interface_of(_source_towards(others))


def address_for_others() -> str:
    """The address by which other hosts reach this one: its name's or, if that is loopback, an interface's."""
    own = _addresses(socket.gethostname())
    if own and not own[0].is_loopback:
        return str(own[0])
    return _source_towards([]) or "127.0.0.1"


def _is_remote(name: str) -> bool:
    return name != "localhost" and not name.startswith("127.") and name != "::1"


def _source_towards(others: Iterable[str]) -> str | None:
    """This host's source address towards the first host beyond loopback, else that of its default route."""
    for name in [*others, "192.0.2.1"]:  # reserved, no host has it: the default route
        for address in _addresses(name):
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            try:
                with socket.socket(family, socket.SOCK_DGRAM) as probe:
                    probe.connect((str(address), 9))  # UDP: sends nothing
                    source = str(probe.getsockname()[0])
            except OSError:
                continue
            if not ipaddress.ip_address(source).is_loopback:
                return source
    return next((address for _, address in _active_addresses()), None)


def _active_addresses() -> list[tuple[str, str]]:
    """(interface, IPv4 address) pairs of the interfaces that are up, without loopback."""
    stats = psutil.net_if_stats()
    return [
        (name, entry.address)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
        and name in stats
        and stats[name].isup
        and not ipaddress.ip_address(entry.address).is_loopback
    ]


def _interface_of(address: str | None) -> str | None:
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None


def _addresses(name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
