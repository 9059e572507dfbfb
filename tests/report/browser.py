"""A headless Chromium spoken to over its DevTools pipe: what a page asks for and complains about, how wide it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless_shell")
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
PATIENCE_S = 60.0


def chromium() -> str | None:
    """The browser's program, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab; ``events`` holds all that the browser told, in order."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest, self._last, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        os.set_blocking(from_browser, False)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        for said in self._messages():
            if said.get("id") == self._last:
                assert "error" not in said, said
                return said["result"]
        raise TimeoutError(f"no answer to {method}")

    def open(self, page: Path) -> None:
        """Load a page to its end."""
        before = len(self.events)
        self.call("Page.navigate", url=page.as_uri())
        if not any(event["method"] == "Page.loadEventFired" for event in self.events[before:]):
            for said in self._messages():
                if said.get("method") == "Page.loadEventFired":
                    break

    def value(self, script: str) -> Any:
        """What a script evaluates to."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that the page asked for, data URIs aside."""
        asked = [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith("data:")]

    def complaints(self) -> list[Any]:
        """Errors and warnings, and everything written to the console."""
        names = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event["params"] for name in names for event in self._of(name)]

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["method"] == method]

    def _messages(self) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            while b"\0" in self._rest:
                line, self._rest = self._rest.split(b"\0", 1)
                said = json.loads(line)
                if "method" in said:
                    self.events.append(said)
                yield said
            try:
                self._rest += os.read(self._from, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Browser]:
    """A browser for a while. It reads commands from its descriptor 3 and answers on 4."""
    commands, answers = os.pipe(), os.pipe()
    switches = " ".join((*SWITCHES, f"--user-data-dir='{profile}'"))
    line = f"exec '{program}' {switches} 3<&{commands[0]} 4>&{answers[1]}"
    process = subprocess.Popen(
        ["bash", "-c", line],
        pass_fds=(commands[0], answers[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for inherited in (commands[0], answers[1]):
        os.close(inherited)
    try:
        tab = Browser(commands[1], answers[0])
        yield tab
        tab.call("Browser.close")
    finally:
        with suppress(OSError):
            os.close(commands[1])
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(answers[0])
