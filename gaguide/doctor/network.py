"""Checks of the network: whether ranks can connect, and whether the model hub answers."""

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
    """Whether two processes connect on loopback and add two numbers; `answers` are those of the probes."""
    if all(answer.get("sum") == 3 for answer in answers):
        return ok("gloo", "two processes connected on loopback and summed")
    errors = [answer["error"] for answer in answers if "error" in answer]
    if errors:
        return fail(
            "gloo",
            f"two processes on loopback did not connect ({errors[0]})",
            "choose an interface from `ip address`: export GLOO_SOCKET_IFNAME=lo (one host), eth0, …",
        )
    return warn(
        "gloo", "two processes did not connect in time (a busy machine?)", "run doctor again when idle"
    )


def interfaces() -> Iterator[Check]:
    """Whether the interfaces that the environment names exist."""
    present = [name for _, name in socket.if_nameindex()]
    listed = ", ".join(present)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        wanted = os.environ.get(variable)
        if not wanted:
            continue
        missing = [name for name in wanted.split(",") if not _matches(variable, name, present)]
        if missing:
            yield fail(variable, f"names {', '.join(missing)}, which do not exist", f"choose one of {listed}")
        else:
            yield ok(variable, wanted)


def _matches(variable: str, name: str, present: list[str]) -> bool:
    # NCCL accepts prefixes (eth), exact names (=eth0) and exclusions (^docker); gloo accepts names.
    if variable.startswith("GLOO"):
        return name in present
    if name.startswith("^"):
        return True
    if name.startswith("="):
        return name[1:] in present
    return any(here.startswith(name) for here in present)


def hostname(resolve: Callable[[str], str] = socket.gethostbyname) -> Check:
    """Whether the host's name resolves: gloo listens on that address unless it is loopback."""
    name = socket.gethostname()
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return ok("hostname", f"{name}; ranks use GLOO_SOCKET_IFNAME")
    automatic = "a run on several hosts chooses an interface (override with GLOO_SOCKET_IFNAME)"
    try:
        address = _in_time(lambda: resolve(name), _NAME_SECONDS)
    except (OSError, UnicodeError) as error:
        return warn("hostname", f"{name} does not resolve ({error}); {automatic}", "add it to /etc/hosts")
    if address is None:
        return warn("hostname", f"looking up {name} does not end", "correct /etc/resolv.conf or /etc/hosts")
    if address.startswith("127."):
        return ok("hostname", f"{name} is {address}, which other hosts cannot reach; {automatic}")
    return ok("hostname", f"{name} is {address}")


class Hub:
    """Checks in the background whether the model hub answers."""

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
        # A daemon thread, because name resolution has no timeout.
        self._thread = threading.Thread(target=self._ask, daemon=True)
        if self._offline is None:
            self._thread.start()

    def _ask(self) -> None:
        try:
            request = urllib.request.Request(self.address, method="HEAD")
            with urllib.request.urlopen(request, timeout=_HUB_SECONDS):
                self._finding.append("")
        except urllib.error.HTTPError as error:  # any answer counts, except one from a proxy
            self._finding.append(f"HTTP {error.code}" if error.code in (403, 407, 502, 503, 504) else "")
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._finding.append(str(getattr(error, "reason", error)))

    def check(self) -> Check:
        """The result; never a failure, because local folders work without a hub."""
        if self._offline:
            return ok("model hub", f"not checked: {self._offline} is set")
        self._thread.join(_HUB_SECONDS + 1)
        finding = self._finding[0] if self._finding else f"no answer in {_HUB_SECONDS:.0f} s"
        if not finding:
            return ok("model hub", f"{self.address} answers")
        return warn(
            "model hub",
            f"{self.address}: {finding}",
            "use local folders for models, data and tasks, and export HF_HUB_OFFLINE=1; "
            "behind a proxy, set HTTPS_PROXY",
        )


def _in_time(call: Callable[[], str], seconds: float) -> str | None:
    """Result of `call`, or None if it takes longer than `seconds`; its exceptions propagate."""
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
