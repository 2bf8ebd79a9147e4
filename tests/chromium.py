"""A headless Chromium over its debugging pipe (Chrome DevTools Protocol), without a driver package.

Commands go to file descriptor 3 of the browser and answers come from 4, as JSON between NULs.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which a container forbids; what is opened was written here
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_SECONDS = 60.0

Json = dict[str, Any]


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """A browser with an empty profile. Skips where there is none, unless CHROMIUM_REQUIRED is set."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        if os.environ.get("CHROMIUM_REQUIRED"):
            pytest.fail("CHROMIUM_REQUIRED is set, but no Chromium is installed")
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser([program, *_FLAGS, f"--user-data-dir={profile}"])
        try:
            yield browser
        finally:
            browser.close()


class Browser:
    """One process of Chromium."""

    def __init__(self, command: list[str]) -> None:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 103), (os.POSIX_SPAWN_DUP2, theirs_out, 104)]
        actions += [(os.POSIX_SPAWN_DUP2, 103, 3), (os.POSIX_SPAWN_DUP2, 104, 4)]
        actions += [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
        self._process = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        os.close(theirs_in)
        os.close(theirs_out)
        self._unread = b""
        self._sent = 0
        self.events: list[Json] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Json:
        """The result of one command."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._sent:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait_for(self, method: str) -> None:
        """Read until an event came."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._read())

    def _read(self) -> Json:
        until = time.monotonic() + _SECONDS
        while b"\0" not in self._unread:
            left = until - time.monotonic()
            if left < 0 or not select.select([self._from], [], [], left)[0]:
                raise TimeoutError(f"Chromium said nothing for {_SECONDS:.0f} seconds")
            part = os.read(self._from, 1 << 16)
            if not part:
                raise RuntimeError("Chromium ended")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, **view: Any) -> "Page":
        """A page in a tab of its own, see Page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.load(path, **view)
        return page

    def close(self) -> None:
        """End it and wait for that."""
        with contextlib.suppress(RuntimeError, OSError):
            self.call("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._to)
        os.close(self._from)


class Page:
    """What a reader sees of one file."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **parameters: Any) -> Json:
        """The result of one command to this page."""
        return self._browser.call(method, self._session, **parameters)

    def load(self, path: Path, *, width: int, dark: bool = False, media: str = "screen") -> None:
        """Open `path`, offline, in a window of `width` CSS pixels."""
        self._browser.events.clear()
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.call("Network.emulateNetworkConditions", offline=True, **conditions)
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=2,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        self._browser.wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse there."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def tap(self, x: float, y: float) -> None:
        """Touch the screen there, with all that a browser makes of a tap."""
        point = {"x": round(x), "y": round(y)}
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        return [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]

    def complaints(self) -> list[Json]:
        """What stands in the console, and exceptions."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for name in names for event in self._events(name)]

    def _events(self, method: str) -> list[Json]:
        return [event["params"] for event in self._browser.events if event.get("method") == method]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
