"""A headless Chromium driven over the DevTools protocol: enough of it to open a page, run scripts and read pixels.

Used by the tests of the web viewer and by benchmarks/web_viewer.py. WebGL2 runs in software (SwiftShader), so that it
works without a GPU and gives the same pixels everywhere.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
    "--disable-quic",
    "--disable-extensions",
    # A page that is not looked at is drawn as seldom as possible, but a headless one is never looked at.
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--disable-background-timer-throttling",
)


def find_chromium() -> str | None:
    """Path of a browser: $CHROMIUM, or the first known name on the PATH."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


class PageError(RuntimeError):
    """A script in the page threw."""


class Page:
    """One tab: commands go out, and what the page reports is kept.

    Attributes:
        messages: console messages, uncaught exceptions and the browser's own complaints, as (level, text).
        failures: URLs that were answered with a status of 400 or above, or not at all.
        bytes: bytes that came over the network, as sent.
        responses: how many answers came.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.count = 0
        self.messages: list[tuple[str, str]] = []
        self.failures: list[str] = []
        self.bytes = 0
        self.responses = 0
        self.urls: dict[str, str] = {}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, timeout: float = 120.0, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result; events that come meanwhile are noted."""
        self.count += 1
        number = self.count
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        deadline = time.monotonic() + timeout
        while True:
            message = json.loads(self.socket.recv(timeout=max(0.01, deadline - time.monotonic())))
            if message.get("id") == number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error'].get('message')}")
                return message["result"]
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            words = [str(a.get("value", a.get("description", a.get("type")))) for a in parameters["args"]]
            self.messages.append((parameters["type"], " ".join(words)))
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            text = details.get("exception", {}).get("description", details["text"])
            self.messages.append(("exception", text))
        elif method == "Log.entryAdded":
            entry = parameters["entry"]
            self.messages.append((entry["level"], f"{entry['text']} {entry.get('url', '')}"))
        elif method == "Network.requestWillBeSent":
            self.urls[parameters["requestId"]] = parameters["request"]["url"]
        elif method == "Network.responseReceived":
            self.responses += 1
            if parameters["response"]["status"] >= 400:
                self.failures.append(f"{parameters['response']['status']} {parameters['response']['url']}")
        elif method == "Network.loadingFailed" and not parameters.get("canceled"):
            self.failures.append(f"{parameters['errorText']} {self.urls.get(parameters['requestId'], '')}")
        elif method == "Network.loadingFinished":
            self.bytes += int(parameters["encodedDataLength"])

    def evaluate(self, script: str, timeout: float = 120.0) -> Any:
        """Value of an expression in the page; promises are awaited.

        Raises:
            PageError: The script threw.
        """
        result = self.command(
            "Runtime.evaluate", timeout, expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    def wait_for(self, condition: str, timeout: float = 60.0) -> Any:
        """The first true value of an expression, asked for again and again.

        Raises:
            TimeoutError: It did not come true in time; the page's messages are named.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if value := self.evaluate(f"(() => {{ try {{ return {condition}; }} catch (e) {{ return false; }} }})()"):
                return value
            time.sleep(0.05)
        raise TimeoutError(f"{condition} did not come true in {timeout} s; messages: {self.messages[-5:]}")

    def close(self) -> None:
        """Close the tab."""
        self.command("Page.close")
        self.socket.close()

    def open(self, url: str) -> None:
        """Go to a URL; what earlier pages reported is forgotten."""
        self.messages, self.failures, self.bytes, self.responses = [], [], 0, 0
        self.command("Page.navigate", url=url)

    def run_first(self, script: str) -> None:
        """Run a script in every page opened from now on, before the page's own."""
        self.command("Page.addScriptToEvaluateOnNewDocument", source=script)

    def block(self, *patterns: str) -> None:
        """Never ask for URLs that match, with * for anything."""
        self.command("Network.setBlockedURLs", urls=list(patterns))

    def screenshot(self, path: Path) -> None:
        """Write what the page looks like."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))

    def pixels(self, script: str, width: int, height: int) -> NDArray[np.uint8]:
        """Pixels [height, width, 3], top row first, from a script that gives RGBA bytes, bottom row first."""
        text = self.evaluate(
            f"(async () => {{ const bytes = await ({script}); let text = '';"
            " for (let i = 0; i < bytes.length; i += 32768)"
            " text += String.fromCharCode.apply(null, bytes.subarray(i, i + 32768));"
            " return btoa(text); })()"
        )
        flat = np.frombuffer(base64.b64decode(text), np.uint8)
        return flat.reshape(height, width, 4)[::-1, :, :3].copy()


class Browser:
    """A running browser, with as many tabs as are asked for.

    Args:
        process: Chromium, the leader of a session of its own.
        profile: Its folder, where it writes which port it listens on.
    """

    def __init__(self, process: subprocess.Popen[bytes], profile: Path) -> None:
        self.process = process
        self.stack = contextlib.ExitStack()
        deadline = time.monotonic() + 60
        port_file = profile / "DevToolsActivePort"
        while not (port_file.exists() and port_file.read_text()):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"Chromium did not start (exit code {process.poll()})")
            time.sleep(0.05)
        self.address = f"http://127.0.0.1:{port_file.read_text().split()[0]}"

    def new_page(self) -> Page:
        """A fresh tab."""
        request = urllib.request.Request(f"{self.address}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=60) as answer:
            address = json.load(answer)["webSocketDebuggerUrl"]
        return Page(self.stack.enter_context(connect(address, max_size=None, open_timeout=60)))

    def processes(self) -> list[list[str]]:
        """The numbers of /proc/PID/stat after the name, of every process of the browser; Linux only."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid:
                    found.append(fields)
        return found

    def cpu_seconds(self) -> float:
        """Processor time that the browser's living processes have used, which other programs' load does not change."""
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in self.processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Memory of all its processes; pages that they share count once for each."""
        return sum(int(fields[21]) for fields in self.processes()) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def open_browser(width: int = 800, height: int = 600, flags: tuple[str, ...] = (), nice: int = 0) -> Iterator[Browser]:
    """A fresh browser, which is ended with the block.

    Args:
        width: Of the window, pixels.
        height: Of the window, pixels.
        flags: Further command-line flags.
        nice: Priority to give up.

    Raises:
        FileNotFoundError: There is no browser on this machine.
    """
    program = find_chromium()
    if program is None:
        raise FileNotFoundError("no Chromium found: install one, or name it in CHROMIUM")
    prefix = ["nice", "-n", str(nice)] if nice else []
    with tempfile.TemporaryDirectory(prefix="radcomp-chromium-", ignore_cleanup_errors=True) as profile:
        arguments = [*prefix, program, *FLAGS, *flags, f"--window-size={width},{height}", f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            [*arguments, "--remote-debugging-port=0", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            browser = Browser(process, Path(profile))
            with browser.stack:
                yield browser
        finally:
            _end(process)


@contextlib.contextmanager
def open_page(width: int = 800, height: int = 600, flags: tuple[str, ...] = (), nice: int = 0) -> Iterator[Page]:
    """One tab of a fresh browser; see `open_browser`."""
    with open_browser(width, height, flags, nice) as browser:
        yield browser.new_page()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a browser and all it started; they form a session of their own."""
    for signal_number in (15, 9):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
