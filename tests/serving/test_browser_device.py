"""A browser as a device, in headless Chromium: its pictures are PyTorch's, nobody gets another's, a closed tab leaves."""

import base64
import io
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from scripts.browser_page import draw, join, ready, save_profile
from scripts.live_page import Browser, chromium, until
from splitpoint.diffusion.batch import Request, StepBatch
from splitpoint.diffusion.hybrid import HybridPipeline, load_mini_hybrid
from splitpoint.diffusion.mini_networks import token_ids
from splitpoint.files import read_meta
from splitpoint.offloading.hardware import read_profile
from splitpoint.serving.browser_files import has_runtime
from splitpoint.serving.processes import running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs chromium, a system package"),
    pytest.mark.skipif(not has_runtime(), reason="needs `splitpoint browser-files`, once, which needs a connection"),
]
STEPS = 12
SAMPLERS = ("ddim", "euler", "dpmsolver++")
STYLES = ("noto", "twemoji", "fluent")
SPLITS = (3, 6, STEPS)


@pytest.fixture(scope="module")
def edge():
    options = ("--policy", "first_come", "--num-steps", str(STEPS), "--max-batch", "8", "--drain", "0", "--classroom")
    with running(*options, users=["ann"]) as started:
        yield started


@pytest.fixture(scope="module")
def browser(edge):
    with Browser(f"{edge.url}/student", width=390, height=800) as started:
        yield started


@pytest.fixture(scope="module")
def hybrid():
    return load_mini_hybrid(num_steps=STEPS)


def text(page, name):
    return page.ask(f"document.getElementById('{name}').textContent")


def measured(page):
    ready(page)
    assert "Measured" in text(page, "measured")


@pytest.fixture(scope="module")
def phone(edge, browser):
    join(browser, "dua", edge.code.lower(), "openmoji")
    measured(browser)
    return browser


def wait_for_picture(page):
    page.wait_for("document.getElementById('result').textContent", 120)
    assert text(page, "result").startswith("Predicted"), text(page, "result")


def picture_on(page):
    content = page.ask("document.getElementById('picture').toDataURL('image/png')").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"), dtype=int)


def expected(page, hybrid, prompt, style):
    """What one process alone draws of the request that a page has just finished."""
    here = int(re.search(r"(\d+)( steps)? on your device", text(page, "decision"))[1])
    seed = int(text(page, "by").split()[-1])
    return np.asarray(hybrid.generate(prompt, style, here, seed).images[0], dtype=int)


# --- the worker by itself ---

WORKER = """
window.worker = new Worker('/device_worker.js', { type: 'module' });
window.call = (message, kind) => new Promise((resolve) => {
  worker.onmessage = ({ data }) => { if ([kind, 'failed'].includes(data.kind)) resolve(data); };
  worker.postMessage(message);
});
window.told = fetch('/v1/classroom').then((answer) => answer.json());
window.tables = (name) => fetch('/v1/tables/' + encodeURIComponent(name)).then((answer) => answer.json());
window.unpacked = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt()).buffer;
0
"""


@pytest.fixture(scope="module")
def worker(browser, edge):
    page = browser.stranger(f"{edge.url}/student")
    page.wait_for("document.readyState === 'complete'")
    page.ask(WORKER)
    yield page
    browser.close(page)


def drawn_by(worker, content, tokens, sampler):
    sent = base64.b64encode(content).decode()
    return worker.ask(f"""(async () => {{
        const table = await tables('{sampler}');
        const found = await call({{ kind: 'draw', content: unpacked('{sent}'), tokens: {tokens}, table, every: 0 }}, 'drawn');
        return found.text ?? btoa(String.fromCharCode(...found.picture.pixels));
    }})()""")


def packets_of(hybrid, prompt, sampler):
    """Packets of one request at each split point; the one with no step done carries its noise."""
    found = hybrid.edge_phase([prompt] * len(SPLITS), list(SPLITS), 7)
    batch = StepBatch(hybrid.family)
    noise = batch.prepare(Request(prompt, 7, STEPS, 0, hybrid.guidance_scale, sampler)).latent
    return [packet if packet.step else replace(packet, latent=noise) for packet in found]


@pytest.mark.parametrize("style", STYLES)
def test_a_picture_is_pytorchs_within_a_grey_level(worker, hybrid, style):
    told = worker.ask(
        f"(async () => await call({{ kind: 'load', facts: (await told).browser, style: '{style}' }}, 'loaded'))()"
    )
    assert told["kind"] == "loaded", told
    tokens = token_ids(hybrid.pipeline.tokenizer, ["red apple", ""]).tolist()
    worst = {}
    for sampler in SAMPLERS:
        run = dict(num_steps=STEPS, scheduler=sampler, guidance_scale=hybrid.guidance_scale)
        mine = HybridPipeline(hybrid.pipeline, hybrid.users, **run)
        for split, packet in zip(SPLITS, packets_of(mine, "red apple", sampler)):
            pixels = base64.b64decode(drawn_by(worker, packet.to_bytes(), tokens, sampler))
            found = np.frombuffer(pixels, np.uint8).reshape(64, 64, 4)[..., :3].astype(int)
            alone = np.asarray(mine.device_phase(packet, style), dtype=int)
            assert alone.std() > 20  # a picture, not a blank
            worst[sampler, split] = int(np.abs(found - alone).max())
    print(style, worst)  # shown with -rP
    assert max(worst.values()) <= 1, worst


def test_a_packet_that_was_damaged_or_is_of_another_model_or_run_is_refused(worker, hybrid):
    packet = hybrid.edge_phase("red apple", 3, 7)[0]
    content = packet.to_bytes()
    tokens = [[0] * 16] * 2
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    wrong = {
        "checksum differs": bytes(damaged),
        "magic word": b"x" + content[1:],
        "another model": replace(packet, model="0" * 16).to_bytes(),
        "another run": replace(packet, num_steps=STEPS + 1).to_bytes(),
        "another shape": replace(packet, latent=packet.latent[:1]).to_bytes(),
    }
    for said, sent in wrong.items():
        assert said in drawn_by(worker, sent, tokens, "ddim")
    half = packet.astype("float16")
    assert "packet" not in drawn_by(worker, half.to_bytes(), tokens, "ddim")


# --- the page ---


def test_a_phone_finishes_its_own_picture(edge, phone, hybrid):
    assert float(phone.ask("document.getElementById('step').value")) > 0
    draw(phone, "birthday cake", step=0.5)
    wait_for_picture(phone)
    found = picture_on(phone)
    assert np.abs(found - expected(phone, hybrid, "birthday cake", "openmoji")).max() <= 1
    row = httpx.get(f"{edge.url}/v1/finished", params={"token": edge.viewer}, timeout=30).json()[-1]
    assert row["user"] == "dua" and 0 < row["steps"] < STEPS and row["device_step_s"] == 0.5 and row["price_s"] > 0
    shown = httpx.get(f"{edge.url}/pictures/{row['id']}.png", params={"token": edge.viewer}, timeout=30).content
    assert (np.asarray(Image.open(io.BytesIO(shown)).convert("RGB"), dtype=int) == found).all()
    asked = phone.ask("performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin).join(' ')")
    assert set(asked.split()) == {edge.url}
    assert phone.ask("document.documentElement.scrollWidth") <= 390
    assert phone.ask("[...document.querySelectorAll('[role=status]')].length") >= 4
    unnamed = "[...document.querySelectorAll('input, select, progress, canvas')].filter(e => !e.labels?.length && !e.getAttribute('aria-label')).length"
    assert phone.ask(unnamed) == 0
    assert phone.errors == []


def test_one_that_the_edge_refuses_draws_all_steps(phone, hybrid):
    draw(phone, "umbrella", step=0.001, alpha=0)
    wait_for_picture(phone)
    assert text(phone, "decision").startswith(f"Not granted: all {STEPS} steps")
    seed = int(text(phone, "by").split()[-1])
    alone = np.asarray(hybrid.generate("umbrella", "openmoji", STEPS, seed).images[0], dtype=int)
    assert np.abs(picture_on(phone) - alone).max() <= 1


def test_a_reload_goes_on_from_the_saved_packet(edge, phone, hybrid):
    draw(phone, "red apple", step=0.5, alpha=100)  # so much that the device has steps left on any machine
    phone.wait_for("sessionStorage.getItem('packet')")
    phone.call("Page.reload")
    phone.wait_for("document.getElementById('decision').textContent")
    wait_for_picture(phone)
    assert np.abs(picture_on(phone) - expected(phone, hybrid, "red apple", "openmoji")).max() <= 1
    last = httpx.get(f"{edge.url}/v1/finished", params={"token": edge.viewer}, timeout=30).json()[-1]
    assert last["user"] == "dua" and last["total_s"] >= last["device_s"] > 0
    assert phone.ask("sessionStorage.getItem('packet')") is None


def test_cancel_stops_the_device_and_tells_the_edge(edge, phone):
    done = len(httpx.get(f"{edge.url}/v1/finished", params={"token": edge.viewer}, timeout=30).json())
    draw(phone, "red apple", step=4, alpha=100)
    phone.wait_for("!document.getElementById('steps').hidden && document.getElementById('steps').value > 0")
    phone.ask("document.getElementById('cancel').click()")
    phone.wait_for("document.getElementById('result').textContent === 'Cancelled.'")
    assert phone.ask("document.getElementById('go').disabled") is False
    assert len(httpx.get(f"{edge.url}/v1/finished", params={"token": edge.viewer}, timeout=30).json()) == done


def test_a_measured_profile_is_one_that_notebooks_read(phone, tmp_path):
    file = save_profile(phone, tmp_path)
    ((key, curve),) = read_profile(file).items()
    assert key[1:] == ("mini", "fp32", "wasm", "True") and "Chrome" in key[0]
    assert curve.medians()[0].tolist() == [1, 2, 4, 8] and (curve.medians()[1] > 0).all()
    assert read_meta(file)["kind"] == "measured"


# --- many ---


def test_eight_strangers_get_their_own_pictures(edge, browser, hybrid):
    prompts = ["red apple", "birthday cake", "umbrella", "rocket", "mushroom", "house", "sunflower", "pizza"]
    styles = [list(hybrid.users)[number % 4] for number in range(8)]
    pages = [browser.stranger(f"{edge.url}/student") for _ in prompts]
    try:
        for number, page in enumerate(pages):
            join(page, f"student{number}", edge.code.lower(), styles[number])
        for page in pages:
            measured(page)
        for page, prompt in zip(pages, prompts):
            draw(page, prompt, step=0.5)
        for page, prompt, style in zip(pages, prompts, styles):
            wait_for_picture(page)
            assert np.abs(picture_on(page) - expected(page, hybrid, prompt, style)).max() <= 1
            assert page.errors == []
    finally:
        for page in pages:
            browser.close(page)


def test_a_closed_tab_frees_its_place_within_a_step(edge, browser):
    """While the engine stands still in its first step with a member, that member's tab closes and another one comes."""
    pages = [browser.stranger(f"{edge.url}/student") for _ in range(2)]
    for number, page in enumerate(pages):
        join(page, f"guest{number}", edge.code.lower())
    for page in pages:
        measured(page)
    engine, before = _engine_of(edge.process.pid), cancelled(edge)
    os.kill(engine, signal.SIGSTOP)
    try:
        draw(pages[0], "red apple", step=5)
        pages[0].wait_for("document.getElementById('doing').textContent.startsWith('the edge')")
        browser.close(pages[0])
        until(lambda: cancelled(edge) == before + 1, "the edge did not notice that the tab closed")
        draw(pages[1], "umbrella", step=5, alpha=0)
        pages[1].wait_for("document.getElementById('doing').textContent.startsWith('the edge')")
    finally:
        os.kill(engine, signal.SIGCONT)
    pages[1].wait_for("sessionStorage.getItem('packet')")
    log = httpx.get(f"{edge.url}/v1/log", params={"token": edge.viewer}, timeout=30).json()["log"]
    asked = [event["ids"][0] for event in log if event["kind"] == "ask"][-2:]
    began = [event["ids"] for event in log if event["kind"] == "begin"]
    gone, stayed = ([ids for ids in began if name in ids] for name in asked)
    assert len(gone) == 1 and len(stayed) > 1
    assert not any(asked[0] in ids for ids in stayed)
    browser.close(pages[1])


def cancelled(edge) -> int:
    """Requests that were taken back."""
    said = httpx.get(f"{edge.url}/metrics", params={"token": edge.viewer}, timeout=30).text
    return int(float((re.search(r'cancelled"} ([\d.]+)', said) or [0, 0])[1]))


def _engine_of(edge: int) -> int:
    """The process that computes: the first that the edge started."""
    children = Path(f"/proc/{edge}/task/{edge}/children").read_text().split()
    return min(int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())
