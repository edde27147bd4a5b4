"""A real browser without a window: chromium, spoken to through pipes in its DevTools protocol.

Every error that a page causes is kept: exceptions, console errors, what its policy refused, and any request
that leaves the page's own file.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.support.patience import patience

_NAMES = ("chromium", "chromium-browser", "google-chrome")
EXECUTABLE = next((path for name in _NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(
    EXECUTABLE is None, reason="no chromium on this machine (Debian: apt-get install chromium)"
)


class Browser:
    """One chromium with one tab. Use it as a context manager; `open` a page, then ask and act."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._requests: list[str] = []
        self._events: list[Mapping[str, Any]] = []
        self._last = 0
        self._buffer = b""
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        read_its, self._write = os.pipe()
        self._read, write_its = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars "
            "--no-first-run --disable-extensions --disable-background-networking --remote-debugging-pipe"
        )
        # Chromium reads its descriptor 3 and writes 4.
        self._process = subprocess.Popen(
            [
                "bash", "-c", 'exec "$@" 3<&"$IN" 4>&"$OUT"', "bash",
                str(EXECUTABLE), *flags.split(), f"--user-data-dir={self._profile.name}", "about:blank",
            ],
            env=os.environ | {"IN": str(read_its), "OUT": str(write_its)}, pass_fds=(read_its, write_its),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(read_its)
        os.close(write_its)

    def __enter__(self) -> Browser:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Its renderers are in its process group.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result; events that come in between are kept."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def open(
        self, path: Path, fragment: str = "", *, width: int = 1200, height: int = 900, dark: bool = False,
        media: str = "", phone: bool = False,
    ) -> None:  # fmt: skip
        """Load a local page and wait until it has loaded. media: "print" shows it as printed."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=phone)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.send("Page.navigate", url="about:blank")
        self.errors.clear()
        self._requests.clear()
        self._events.clear()
        address = path.resolve().as_uri()
        answer = self.send("Page.navigate", url=address + fragment)
        assert "errorText" not in answer, f"{path}: {answer['errorText']}"
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._note(self._next())
        # That event may have been the blank page's. What loading caused has arrived before the answer.
        while self.evaluate("document.readyState") != "complete":
            time.sleep(0.01)
        self.errors += [
            f"asked for {url}" for url in self._requests
            if url.split("#")[0] != address and not url.startswith(("data:", "about:"))
        ]  # fmt: skip

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """A key, as a person presses it (names as in KeyboardEvent.key)."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
                 "ArrowDown": 40, "End": 35, "Home": 36}  # fmt: skip
        text = {"Enter": "\r"}.get(key, "")
        for _ in range(times):
            for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
                self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                          windowsVirtualKeyCode=codes[key])  # fmt: skip

    def hover(self, selector: str, click: bool = False) -> None:
        """Move the pointer to the middle of the first element that matches, and click there if asked."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        place = {"x": box[0], "y": box[1]}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **place)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def choose(self, selector: str, value: str) -> None:
        """Set a form's control and tell the page, as a person's choice would."""
        self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            f" if (e.type === 'radio') e.checked = true; else e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('input', {bubbles: true}));"
            " e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page, from top to bottom or as much as the window shows."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self, path: Path) -> None:
        """The page as printed on A4."""
        answer = self.send("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + patience(60)
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, f"the browser ended (code {self._process.poll()})"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    def _note(self, event: Mapping[str, Any]) -> None:
        self._events.append(event)
        fields = event.get("params", {})
        method = event.get("method")
        if method == "Runtime.exceptionThrown":
            details = fields["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and fields["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(item.get("value", item)) for item in fields["args"]))
        elif method == "Log.entryAdded" and fields["entry"]["level"] in ("error", "warning"):
            self.errors.append(fields["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self._requests.append(fields["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {fields['message']}")
            self.send("Page.handleJavaScriptDialog", accept=True)
