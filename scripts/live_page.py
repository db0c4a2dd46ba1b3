"""The running edge's live page in a real browser: for its tests, and for the README's picture of it.

``python scripts/live_page.py`` starts an edge and a hundred and twenty devices, and writes
``data/readme/live_page_light.png`` and ``…_dark.png``. Needs chromium (a system package).
"""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import httpx
import websocket

from splitpoint.files import data_path, write_atomically, write_meta
from splitpoint.serving.load import draw_requests, play
from splitpoint.serving.processes import running

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --hide-scrollbars".split()


def chromium() -> str | None:
    """Where it is, if it is."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page of a browser, driven over its debugging protocol.

    Args:
        address: of its debugging socket.
        url: to go to.
        width, height: of the window, pixels.
        scheme: ``light`` or ``dark``, as the reader's system prefers.
    """

    def __init__(self, address: str, url: str, width: int, height: int, scheme: str):
        self.errors: list[str] = []
        self.target = ""  # its name among the browser's tabs, if that is known
        self._number = itertools.count(1)
        self._socket = websocket.create_connection(address, timeout=60)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value=scheme)])
        self.call("Page.navigate", url=url)

    def call(self, method: str, **parameters) -> dict:
        """A command of the protocol, and its answer; what the page complains of meanwhile is kept in ``errors``."""
        return _exchange(self._socket, next(self._number), method, parameters, self._heard)

    def _heard(self, said: dict) -> None:
        if said.get("method") == "Runtime.exceptionThrown":
            self.errors.append(said["params"]["exceptionDetails"]["text"])
        elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
            self.errors.append(said["params"]["entry"]["text"])

    def ask(self, expression: str):
        """The value of an expression on the page; a promise's is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def wait_for(self, expression: str, longest_s: float = 60.0) -> None:
        """Until an expression is true."""
        until(lambda: self.ask(expression), f"the page never came to {expression}", longest_s)

    def press(self, key: str) -> None:
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=9)

    def picture(self, **options) -> bytes:
        """A PNG of the window."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **options)["data"])


class Browser(Page):
    """A headless Chromium with one page; a context that ends it.

    Args:
        url, width, height, scheme: as of ``Page``.
    """

    def __init__(self, url: str, width: int = 1200, height: int = 1100, scheme: str = "light"):
        self.url, self.size, self.scheme = url, (width, height), scheme

    def __enter__(self) -> "Browser":
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [chromium(), *QUIET, f"--user-data-dir={self._folder.name}", "--remote-debugging-port=0"]
        self._process = subprocess.Popen(
            [*command, "--remote-allow-origins=*", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port = Path(self._folder.name, "DevToolsActivePort")
        until(lambda: port.exists() and port.read_text().strip(), "the browser did not start")
        self._host = f"127.0.0.1:{port.read_text().split()[0]}"
        pages = httpx.get(f"http://{self._host}/json", timeout=10).json()
        page = next(page for page in pages if page["type"] == "page")
        whole = httpx.get(f"http://{self._host}/json/version", timeout=10).json()
        self._browser = websocket.create_connection(whole["webSocketDebuggerUrl"], timeout=60)
        super().__init__(page["webSocketDebuggerUrl"], self.url, *self.size, self.scheme)
        return self

    def __exit__(self, *_) -> None:
        self._socket.close()
        self._browser.close()
        self._process.terminate()
        self._process.wait(10)
        self._folder.cleanup()

    def stranger(self, url: str) -> Page:
        """A page in a context of its own, which shares nothing with the others: as on another machine."""
        context = self._tell("Target.createBrowserContext")["browserContextId"]
        target = self._tell("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        page = Page(f"ws://{self._host}/devtools/page/{target}", url, *self.size, self.scheme)
        page.target = target
        return page

    def close(self, page: Page) -> None:
        """Close a stranger's tab, as its user would."""
        self._tell("Target.closeTarget", targetId=page.target)

    def _tell(self, method: str, **parameters) -> dict:
        """A command to the browser itself, and its answer."""
        return _exchange(self._browser, next(self._number), method, parameters, lambda said: None)


def _exchange(socket, number: int, method: str, parameters: dict, hear) -> dict:
    """Send one command and wait for its answer; ``hear`` gets what else is said meanwhile."""
    socket.send(json.dumps(dict(id=number, method=method, params=parameters)))
    while True:
        said = json.loads(socket.recv())
        hear(said)
        if said.get("id") == number:
            return said.get("result", {})


def until(true, otherwise: str, longest_s: float = 60.0) -> None:
    """Look again and again; ``TimeoutError`` with these words if it takes too long."""
    latest = time.monotonic() + longest_s
    while not true():
        if time.monotonic() > latest:
            raise TimeoutError(otherwise)
        time.sleep(0.02)


def main() -> None:
    people = ["ann", "ben", "cem", "dua", "eli", "fay"]
    with running("--policy", "first_come", users=people) as edge:

        def crowd():
            asyncio.run(play(edge.url, list(edge.tokens.values()), draw_requests(6.0, 120, 0)))

        thread = threading.Thread(target=crowd)
        pages = [Browser(f"{edge.url}/#token={edge.viewer}", scheme=scheme) for scheme in ("light", "dark")]
        with pages[0], pages[1]:
            for page in pages:
                page.wait_for("document.getElementById('state').textContent.startsWith('live')")
            thread.start()  # once the browser's own start disturbs nobody
            for page in pages:
                page.wait_for("document.querySelectorAll('#last tr').length > 10")
                page.wait_for("document.querySelectorAll('#rows li').length > 3")
                file = data_path("readme", f"live_page_{page.scheme}.png")
                write_atomically(file, page.picture())
                write_meta(file, kind="measured", command="python scripts/live_page.py", seed=0, licence="CC-BY-SA-4.0")
        thread.join()


if __name__ == "__main__":
    main()
