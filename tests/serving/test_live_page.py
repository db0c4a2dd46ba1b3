"""The live page in a real browser: what it shows, without a network, with a keyboard, dark and light, on a phone."""

import httpx
import pytest

from scripts.live_page import Browser, chromium
from splitpoint.serving.processes import running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs chromium, a system package"),
]


@pytest.fixture(scope="module")
def edge():
    with running("--policy", "first_come", "--num-steps", "50", "--classroom", users=["ann", "ben"]) as started:
        yield started


def ask(edge, count=3):
    ids = []
    for number in range(count):
        body = dict(prompt="umbrella", seed=number, device_step_s=5.0, alpha=0.0)
        headers = {"Authorization": "Bearer " + edge.tokens["ann"]}
        ids.append(
            (httpx.post(f"{edge.url}/v1/requests", json=body, headers=headers, timeout=30).json()["id"], headers)
        )
    return ids


def finish(edge, ids):
    for name, headers in ids:
        httpx.get(f"{edge.url}/v1/requests/{name}/packet", params={"wait": 20}, headers=headers, timeout=30)
        done = dict(transfer_s=0.01, device_s=3.0, decode_s=0.05, total_s=4.0)
        httpx.post(f"{edge.url}/v1/requests/{name}/ack", json=done, headers=headers, timeout=30)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_what_the_edge_does(edge, scheme):
    with Browser(f"{edge.url}/#token={edge.viewer}", scheme=scheme) as page:
        page.wait_for("document.getElementById('state').textContent.startsWith('live')")
        page.wait_for("document.getElementById('policy').textContent === 'first_come'")
        ids = ask(edge)
        page.wait_for("document.querySelectorAll('#rows li').length > 0")
        assert page.ask("document.querySelector('#rows li').textContent").startswith("ann: umbrella")
        finish(edge, ids)
        page.wait_for("document.querySelectorAll('#last tr').length >= 3")
        page.wait_for("document.getElementById('p95m').textContent.includes('4.00')")
        page.wait_for("document.querySelectorAll('#dots circle').length >= 3")
        back = page.ask("getComputedStyle(document.body).backgroundColor")
        bright = sum(int(part) for part in back.removeprefix("rgb(").removesuffix(")").split(","))
        assert (bright > 600) == (scheme == "light")
        assert page.errors == []


def test_it_asks_nobody_but_its_edge_and_needs_no_mouse(edge):
    with Browser(f"{edge.url}/#token={edge.viewer}") as page:
        page.wait_for("document.getElementById('state').textContent.startsWith('live')")
        asked = page.ask("performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin).join(' ')")
        assert asked and set(asked.split()) == {edge.url}
        assert page.ask("document.documentElement.lang") == "en"
        assert page.ask("document.getElementById('state').getAttribute('role')") == "status"
        unnamed = "[...document.querySelectorAll('svg, ol, section')].filter(e => !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')).length"
        assert page.ask(unnamed) == 0
        page.press("Tab")
        assert page.ask("document.activeElement.id") == "rows"


@pytest.mark.parametrize("path", ["/", "/student"])
def test_it_fits_a_phone(edge, path):
    where = f"{edge.url}{path}" + (f"#token={edge.viewer}" if path == "/" else "")
    with Browser(where, width=390, height=800) as page:
        page.wait_for("document.readyState === 'complete'")
        assert page.ask("document.documentElement.scrollWidth") <= 390
        assert page.errors == []


def test_a_page_without_its_token_says_so(edge):
    with Browser(f"{edge.url}/#token=wrong") as page:
        page.wait_for(
            "document.getElementById('state').textContent.length > 0 && document.getElementById('state').textContent !== 'connecting'"
        )
        assert "live" not in page.ask("document.getElementById('state').textContent")
