"""A Chromium of a test's own, headless, spoken to by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

START_S = 30.0
WAIT_S = 20.0
ADDRESS = re.compile(rb"DevTools listening on (ws://\S+)")


@dataclass(kw_only=True)
class Tab:
    """A page and what was heard of it."""

    socket: ClientConnection
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console: exceptions, what the policy held back, what did not load."""
    asked_for: list[str] = field(default_factory=list)
    """What it wanted to load."""
    _number: int = 0
    _session: str = ""
    _is_loaded: bool = False

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self.socket.send(json.dumps(message))
        while True:
            heard = json.loads(self.socket.recv(timeout=WAIT_S))
            if heard.get("id") == number:
                assert "error" not in heard, (method, heard["error"])
                return heard["result"]
            self._hear(heard)

    def open(self, path: Path, width: int, height: int, is_dark: bool = False) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=path.as_uri())
        while not self._is_loaded:
            self._hear(json.loads(self.socket.recv(timeout=WAIT_S)))

    def run(self, expression: str) -> Any:
        """The value of a line of JavaScript; the page's own policy does not hold it back."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """Takes a screenshot of all of the page."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def spoken(self) -> list[tuple[str, str]]:
        """Roles and names, as who cannot see hears them."""
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]

    def _hear(self, heard: dict[str, Any]) -> None:
        method, params = heard.get("method"), heard.get("params", {})
        if method == "Page.loadEventFired":
            self._is_loaded = True
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.asked_for.append(params["request"]["url"])


def find_chromium() -> str:
    """The program; skips the test where there is none, and fails it in CI."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        reason = "chromium is not on the PATH (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return program


@contextmanager
def browsing(folder: Path) -> Iterator[str]:
    """Starts a browser; yields its address for `tab`."""
    words = ["--headless", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0", "--no-first-run"]
    # its own sandbox needs a user that is not root, or a kernel that lets users make namespaces
    words += ["--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={folder}"]
    process = subprocess.Popen([find_chromium(), *words, "about:blank"], stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        found = next((match[1] for line in process.stderr if (match := ADDRESS.search(line))), None)
        assert found is not None, "chromium has ended"
        yield found.decode()
    finally:
        process.terminate()
        process.communicate(timeout=20)


@contextmanager
def tab(address: str) -> Iterator[Tab]:
    with connect(address, max_size=None) as socket:
        yield Tab(socket=socket)
