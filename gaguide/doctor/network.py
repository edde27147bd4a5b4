"""Checks of the network: ranks finding each other, and the model hub."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from gaguide.doctor.check import Check, fail, ok, warn

_HUB_SECONDS = 4.0
_NAME_SECONDS = 3.0
_TRUE = ("1", "true", "yes", "on")


def gloo(answers: list[dict[str, Any]]) -> Check:
    """Two processes that meet on loopback and add two numbers."""
    if all(answer.get("sum") == 3 for answer in answers):
        return ok("gloo", "two processes met on loopback and summed")
    errors = [answer["error"] for answer in answers if "error" in answer]
    if errors:
        return fail(
            "gloo",
            f"two processes on loopback did not meet ({errors[0]})",
            "name a working interface: export GLOO_SOCKET_IFNAME=lo (one host) or eth0; see `ip address`",
        )
    return warn("gloo", "two processes did not meet in time (a busy machine?)", "run doctor again when idle")


def interfaces() -> Iterator[Check]:
    """The interfaces that the environment asks for exist."""
    present = [name for _, name in socket.if_nameindex()]
    listed = ", ".join(present)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        wanted = os.environ.get(variable)
        if not wanted:
            continue
        missing = [name for name in wanted.split(",") if not _matches(variable, name, present)]
        if missing:
            yield fail(variable, f"names {', '.join(missing)}; here are: {listed}", f"choose of: {listed}")
        else:
            yield ok(variable, wanted)


def _matches(variable: str, name: str, present: list[str]) -> bool:
    # NCCL takes prefixes (eth), exact names (=eth0) and exclusions (^docker); gloo takes names.
    if variable.startswith("GLOO"):
        return name in present
    if name.startswith("^"):
        return True
    if name.startswith("="):
        return name[1:] in present
    return any(here.startswith(name) for here in present)


def hostname(resolve: Callable[[str], str] = socket.gethostbyname) -> Check:
    """gloo listens on the address of the host's own name; where that is loopback, ranks name an interface."""
    name = socket.gethostname()
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return ok("hostname", f"{name}; ranks use GLOO_SOCKET_IFNAME")
    by_itself = "a run over several hosts names its interface by itself (GLOO_SOCKET_IFNAME to choose)"
    try:
        address = _in_time(lambda: resolve(name), _NAME_SECONDS)
    except (OSError, UnicodeError) as error:
        return warn("hostname", f"{name} does not resolve ({error}); {by_itself}", "mend /etc/hosts")
    if address is None:
        return warn("hostname", f"looking up {name} does not end", "mend /etc/resolv.conf or /etc/hosts")
    if address.startswith("127."):
        return ok("hostname", f"{name} is {address}, which other hosts can't reach; {by_itself}")
    return ok("hostname", f"{name} is {address}")


class Hub:
    """Asks in the background whether the model hub answers."""

    def __init__(self) -> None:
        self.address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        self._finding: list[str] = []
        self._offline = next(
            (
                name
                for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
                if os.environ.get(name, "").lower() in _TRUE
            ),
            None,
        )
        # A daemon: looking up a name has no timeout of its own.
        self._thread = threading.Thread(target=self._ask, daemon=True)
        if self._offline is None:
            self._thread.start()

    def _ask(self) -> None:
        try:
            request = urllib.request.Request(self.address, method="HEAD")
            with urllib.request.urlopen(request, timeout=_HUB_SECONDS):
                self._finding.append("")
        except urllib.error.HTTPError as error:  # an answer is an answer, unless a proxy gave it
            self._finding.append(f"HTTP {error.code}" if error.code in (403, 407, 502, 503, 504) else "")
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._finding.append(str(getattr(error, "reason", error)))

    def check(self) -> Check:
        """Never a failure: local folders work without."""
        if self._offline:
            return ok("model hub", f"not asked: {self._offline} is set")
        self._thread.join(_HUB_SECONDS + 1)
        finding = self._finding[0] if self._finding else f"no answer in {_HUB_SECONDS:.0f} s"
        if not finding:
            return ok("model hub", f"{self.address} answers")
        return warn(
            "model hub",
            f"{self.address}: {finding}",
            "use local folders for models, data and tasks, with HF_HUB_OFFLINE=1; "
            "behind a proxy set HTTPS_PROXY",
        )


def _in_time(call: Callable[[], str], seconds: float) -> str | None:
    """`call`'s value, None if it takes longer; its exceptions pass."""
    values: list[str] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            values.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return values[0] if values else None
