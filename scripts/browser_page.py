"""Pictures of a class in real browsers, and what a step takes one of them.

``python -m scripts.browser_page`` starts an edge and eight browsers, and writes ``data/readme/phone.png`` (a student's
page), ``data/readme/projector.png`` (the live page) and ``data/serving/browser_profile.csv``, the file that the page
itself saves; with ``profile`` only that one. Needs chromium (a system package) and ``splitpoint browser-files``.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from scripts.live_page import Browser, Page, until
from splitpoint.files import data_path, device_name, meta_path, write_atomically, write_meta
from splitpoint.serving.processes import running

COMMAND = "python -m scripts.browser_page"
PROMPTS = ["red apple", "birthday cake", "umbrella", "rocket", "mushroom", "house", "sunflower", "pizza"]
STYLES = ["noto", "twemoji", "openmoji", "fluent"]
NAMES = ["ann", "ben", "cem", "dua", "eli", "fay", "gus", "hana"]


def join(page: Page, name: str, code: str, style: str | None = None) -> None:
    """Join a class; see ``ready``."""
    page.wait_for("document.readyState === 'complete'")
    if style:
        page.ask(f"sessionStorage.setItem('style', {json.dumps(style)})")
    page.ask(f"""document.getElementById('name').value = {json.dumps(name)};
        document.getElementById('code').value = {json.dumps(code)};
        document.querySelector('#join button').click()""")


def ready(page: Page) -> None:
    """Wait until the page has measured its device."""
    page.wait_for("!document.getElementById('go').disabled", 120)


def draw(page: Page, prompt: str, **fields: float) -> None:
    """Fill in the form, and ask."""
    for name, value in {"prompt": prompt, **fields}.items():
        page.ask(f"document.getElementById('{name}').value = {json.dumps(str(value))}")
    page.ask("document.getElementById('go').click()")


def save_profile(page: Page, folder: Path) -> Path:
    """Let the page measure its device, and save the CSV and its sidecar, as its user would."""
    page.ask("document.getElementById('profiling').click()")
    page.wait_for("document.querySelectorAll('#files a').length === 2", 180)
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    file = folder / "my_machine.csv"
    for number, saved in enumerate((file, meta_path(file))):
        page.ask(f"document.querySelectorAll('#files a')[{number}].click()")
        until(lambda saved=saved: saved.exists() and saved.stat().st_size, f"{saved.name} was not saved")
    return file


def save(page: Page, name: str) -> None:
    file = data_path("readme", name)
    write_atomically(file, page.picture())
    write_meta(file, kind="measured", command=COMMAND, licence="CC-BY-SA-4.0")


def main() -> None:
    with (
        running("--policy", "posted_price", "--max-batch", "8", "--classroom", users=["teacher"]) as edge,
        Browser(f"{edge.url}/student", width=390, height=844, scheme="dark") as phone,
    ):
        join(phone, NAMES[0], edge.code, STYLES[0])
        ready(phone)
        version = phone.ask("/Chrome\\/(\\d+)/.exec(navigator.userAgent)[1]")
        machine = f"Chromium {version}, {device_name()}"
        file, load = data_path("serving", "browser_profile.csv"), round(os.getloadavg()[0], 1)
        phone.ask(f"document.getElementById('machine').value = {json.dumps(machine)}")
        with tempfile.TemporaryDirectory() as folder:
            write_atomically(file, save_profile(phone, Path(folder)).read_bytes())
        settings = dict(runtime="onnxruntime-web, wasm, one thread", load_average_before=load)
        write_meta(
            file, kind="measured", command=f"{COMMAND} profile", device=machine, licence="MIT", settings=settings
        )
        if sys.argv[1:] == ["profile"]:
            return
        with Browser(f"{edge.url}/#token={edge.viewer}", height=1000) as projector:
            crowd = [phone, *(phone.stranger(f"{edge.url}/student") for _ in NAMES[1:])]
            for number, page in enumerate(crowd[1:], 1):
                join(page, NAMES[number], edge.code, STYLES[number % 4])
                ready(page)
            for number, page in enumerate(crowd):  # five one after the other, then three at once
                draw(page, PROMPTS[number], step=0.2 + 0.02 * number, alpha=20)
                if number < 5:
                    page.wait_for("document.getElementById('result').textContent", 120)
            projector.wait_for("document.querySelectorAll('#rows li').length >= 2", 120)
            save(projector, "projector.png")
            phone.ask("document.getElementById('answer').scrollIntoView({ block: 'start' })")
            save(phone, "phone.png")


if __name__ == "__main__":
    main()
