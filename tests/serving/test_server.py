"""An edge in a process of its own, with the miniature: what arrives, what is refused, what survives."""

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from splitpoint.diffusion.hybrid import load_mini_hybrid
from splitpoint.diffusion.packet import Packet
from splitpoint.serving.device import Device, pace_of
from splitpoint.serving.link import LinkProxy, Toxics
from splitpoint.serving.load import Crowd, draw_requests, play
from splitpoint.serving.processes import running, start

pytestmark = pytest.mark.slow

FEW = ("--num-steps", "6", "--max-batch", "4", "--policy", "first_come")
BODY = dict(prompt="red apple", seed=3, device_step_s=5.0, alpha=0.0)  # a busy machine is still faster


@pytest.fixture(scope="module")
def hybrid():
    return load_mini_hybrid(num_steps=6)


@pytest.fixture(scope="module")
def edge():
    with running(*FEW, users=["ann", "ben"]) as edge:
        yield edge


def client(edge, user="ann", url=None):
    headers = {"Authorization": f"Bearer {edge.tokens[user]}"}
    return httpx.Client(base_url=url or edge.url, headers=headers, timeout=30)


def device(edge, hybrid, style="noto", url=None, **more):
    return Device(url or edge.url, edge.tokens["ann"], hybrid.users[style], step_s=5.0, num_steps=6, **more)


def grey_levels(one, other):
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()


def expected(hybrid, drawn, style="noto", prompt="red apple", seed=3):
    return hybrid.generate(prompt, style, 6 - drawn.steps, seed).images[0]


def test_the_picture_that_arrives_is_the_one_of_notebook_02(edge, hybrid):
    drawn = device(edge, hybrid).draw("red apple", 3)
    assert drawn.where == "edge" and 0 < drawn.steps <= 6
    assert grey_levels(drawn.image, expected(hybrid, drawn)) <= 1
    known = sum(drawn.seconds[part] for part in ("transfer_s", "device_s", "decode_s"))
    known += sum(drawn.spans.values())
    assert known == pytest.approx(drawn.seconds["total_s"], rel=0.01)


def test_eight_at_once_are_eight_alone(edge, hybrid):
    prompts = ["red apple", "house", "rocket", "umbrella"] * 2
    devices = [device(edge, hybrid) for _ in prompts]
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda job: job[0].draw(job[1], 3), zip(devices, prompts)))
    for one, prompt in zip(drawn, prompts):
        assert grey_levels(one.image, expected(hybrid, one, prompt=prompt)) <= 1


def test_duplicates_at_once_are_computed_once(edge):
    with client(edge) as me, ThreadPoolExecutor(20) as pool:
        headers = {"Idempotency-Key": "once"}
        answers = list(pool.map(lambda _: me.post("/v1/requests", json=BODY, headers=headers), range(100)))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        other = me.post("/v1/requests", json=BODY | {"prompt": "house"}, headers=headers)
        assert (other.status_code, other.json()) == (422, {"error": "Idempotency-Key was used with another body"})


def test_a_packet_goes_to_its_user_only(edge):
    with client(edge) as ann, client(edge, "ben") as ben:
        answer = ann.post("/v1/requests", json=BODY).json()
        for method, path in (("GET", "/packet"), ("DELETE", ""), ("POST", "/ack"), ("POST", "/picture"), ("GET", "")):
            refused = ben.request(method, f"/v1/requests/{answer['id']}{path}", content=b"")
            assert (refused.status_code, refused.json()) == (404, {"error": "there is no such request"})
        got = ann.get(f"/v1/requests/{answer['id']}/packet", params={"wait": 20})
        again = ann.get(f"/v1/requests/{answer['id']}/packet")
        assert got.status_code == 200 and got.content == again.content
        assert Packet.from_bytes(got.content).prompt == "red apple"
        assert ann.delete(f"/v1/requests/{answer['id']}").json() == {"state": "cancelled"}
        assert ann.get(f"/v1/requests/{answer['id']}/packet").status_code == 410


@pytest.mark.parametrize(
    "method, path, options, status",
    [
        ("POST", "/v1/requests", dict(headers={"Authorization": "Bearer forged-token"}), 401),
        ("POST", "/v1/requests", dict(headers={"Authorization": "Basic x"}), 401),
        ("POST", "/v1/requests", dict(content=b"[" * 10_000), 422),
        ("POST", "/v1/requests", dict(content=b"x" * 20_000), 413),
        ("POST", "/v1/requests", dict(content=b""), 422),
        ("POST", "/v1/requests", dict(json=BODY | {"prompt": ""}), 422),
        ("POST", "/v1/requests", dict(json=BODY | {"device_step_s": -1}), 422),
        ("POST", "/v1/requests", dict(json=BODY, headers={"Idempotency-Key": "a b"}), 422),
        ("GET", "/v1/requests/../../etc/passwd", {}, 404),
        ("GET", "/v1/requests/%2e%2e%2fetc/packet", {}, 404),
        ("GET", "/pictures/../app.py", {}, 404),
        ("GET", "/pictures/..%2f..%2fapp.png", {}, 404),
        ("GET", "/metrics", dict(headers={"Authorization": "x"}), 401),
        ("GET", "/events?token=x", dict(headers={"Authorization": "x"}), 401),
        ("GET", "/v1/log", dict(headers={"Authorization": "x"}), 401),
        ("GET", "/docs", {}, 404),
        ("PUT", "/v1/requests", {}, 405),
        ("POST", "/v1/join", dict(json={"code": "x", "name": "y"}), 404),
        ("POST", "/v1/images/generations", dict(json={"prompt": "x", "n": 3}), 422),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_in_one_line(edge, method, path, options, status):
    with client(edge) as me:
        answer = me.request(method, path, **options)
        assert answer.status_code == status
        said = answer.json()["error"]
        assert "\n" not in said and len(said) <= 200 and "Traceback" not in said and os.sep + "src" not in said
        assert me.get("/healthz").json()["ok"]


def test_a_body_without_an_announced_length_is_cut_off(edge):
    with client(edge) as me:
        answer = me.post("/v1/requests", content=(b"x" * 1_000 for _ in range(100)))
        assert (answer.status_code, answer.json()) == (413, {"error": "body is longer than 16384 bytes"})


def test_a_picture_must_be_one(edge):
    with client(edge) as me:
        name = me.post("/v1/requests", json=BODY).json()["id"]
        for content in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"x" * 50, b"<svg/>"):
            answer = me.post(f"/v1/requests/{name}/picture", content=content)
            assert (answer.status_code, answer.json()["error"]) == (422, "body is not a PNG picture")
        assert me.post(f"/v1/requests/{name}/picture", content=b"x" * 300_000).status_code == 413


def test_strangers_load_generators_find_a_door(edge, hybrid):
    with client(edge) as me:
        answer = me.post("/v1/images/generations", json=dict(prompt="house", model="any", size="64x64"))
        assert answer.status_code == 200 and len(answer.json()["data"][0]["b64_json"]) > 500


def test_what_prometheus_reads(edge, hybrid):
    device(edge, hybrid).draw("house", 1)
    said = httpx.get(f"{edge.url}/metrics", params={"token": edge.viewer}, timeout=30).text
    assert 'splitpoint_over_total{how="done"}' in said and "splitpoint_step_seconds_count" in said


def test_the_live_page_is_told(edge, hybrid):
    with client(edge) as me, me.stream("GET", "/events", params={"token": edge.viewer}) as stream:
        line = next(line for line in stream.iter_lines() if line.startswith("data: "))
    assert json.loads(line[6:])["max_batch"] == 4


def test_a_damaged_packet_is_fetched_again_and_a_strangers_is_refused(edge, hybrid, monkeypatch):
    mine = device(edge, hybrid)
    send, count = mine._send, [0]

    def flip(method, path, **options):
        answer = send(method, path, **options)
        if path.endswith("/packet") and answer.status_code == 200 and count[0] < 3:
            count[0] += 1
            content = bytearray(answer.content)
            content[(len(content) * count[0]) // 4] ^= 1
            answer._content = bytes(content)
        return answer

    monkeypatch.setattr(mine, "_send", flip)
    drawn = mine.draw("red apple", 3)
    assert count[0] == 3 and grey_levels(drawn.image, expected(hybrid, drawn)) <= 1

    def foreign(method, path, **options):
        answer = send(method, path, **options)
        if path.endswith("/packet"):
            packet = Packet.from_bytes(answer.content)
            from dataclasses import replace

            answer._content = replace(packet, model="0" * 16).to_bytes()
        return answer

    monkeypatch.setattr(mine, "_send", foreign)
    with pytest.raises(ValueError, match="packet is from another model"):
        mine.draw("red apple", 3)


def test_a_link_that_is_cut_at_every_four_kilobytes_costs_nothing_but_time(edge, hybrid):
    with client(edge) as me:
        name = me.post("/v1/requests", json=BODY).json()["id"]
        size = len(me.get(f"/v1/requests/{name}/packet", params={"wait": 20}).content)
    cuts = sorted({*range(0, size, 4096), size // 2, size - 1})
    with LinkProxy("127.0.0.1", edge.port) as link:
        for number, cut in enumerate(cuts):
            mine = device(edge, hybrid, url=link.url, patience_s=20.0)
            kinds = ("reset_after", "truncate_after")
            send = mine._send

            def cutting(method, path, send=send, mine=mine, cut=cut, kind=kinds[number % 2], **options):
                if path.endswith("/packet") and not getattr(mine, "was_cut", False):
                    mine.was_cut = True
                    mine.client.close()
                    mine.client = httpx.Client(base_url=link.url, headers=mine.client.headers, timeout=30)
                    link.toxics = Toxics(**{kind: cut + 1})
                    timer = threading.Timer(0.3, lambda: setattr(link, "toxics", Toxics()))
                    timer.start()
                    answer = send(method, path, **options)
                    timer.join()
                    return answer
                return send(method, path, **options)

            mine._send = cutting
            drawn = mine.draw("red apple", 3)
            assert drawn.where == "edge"
            assert grey_levels(drawn.image, expected(hybrid, drawn)) <= 1


def test_a_slow_link_is_as_slow_as_it_says(edge):
    with LinkProxy("127.0.0.1", edge.port, Toxics(rate_bps=400_000, delay_s=0.02)) as link, client(edge) as me:
        name = me.post("/v1/requests", json=BODY).json()["id"]
        content = me.get(f"/v1/requests/{name}/packet", params={"wait": 20}).content
        with client(edge, url=link.url) as far:
            answer = far.get(f"/v1/requests/{name}/packet")
        assert answer.content == content
        assert answer.elapsed.total_seconds() >= 8 * len(content) / 400_000


def test_without_an_edge_the_picture_comes_all_the_same(edge, hybrid):
    alone = device(edge, hybrid, url="http://127.0.0.1:9", patience_s=0.2)
    drawn = alone.draw("red apple", 3)
    assert (drawn.where, drawn.steps) == ("alone", 0)
    assert grey_levels(drawn.image, expected(hybrid, drawn)) == 0


def test_a_device_goes_on_from_its_saved_packet(edge, hybrid, tmp_path, monkeypatch):
    mine = device(edge, hybrid, folder=tmp_path)
    monkeypatch.setattr(mine, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        mine.draw("red apple", 3)
    assert len(list(tmp_path.glob("*.packet"))) == 1
    (drawn,) = device(edge, hybrid, folder=tmp_path).resume()
    assert grey_levels(drawn.image, expected(hybrid, drawn)) <= 1
    assert list(tmp_path.iterdir()) == []


def test_kill_the_edge_and_no_accepted_request_is_lost(hybrid, tmp_path):
    options = (*FEW, "--journal", str(tmp_path / "journal"))
    first = start(*options, users=["ann"])
    second = None
    try:
        children = _children(first.process.pid)
        me = client(first)
        names = {}
        for seed in range(6):
            answer = me.post("/v1/requests", json=BODY | {"seed": seed}, headers={"Idempotency-Key": f"k{seed}"}).json()
            names[seed] = answer["id"], answer["steps"]
        first.kill()
        second = start(*options, users=dict(first.tokens), port=first.port)
        granted = 0
        for seed, (name, steps) in names.items():
            if not steps:
                assert me.get(f"/v1/requests/{name}").json()["state"] == "home"
                continue
            granted += 1
            got = me.get(f"/v1/requests/{name}/packet", params={"wait": 20})
            assert got.status_code == 200
            packet = Packet.from_bytes(got.content)
            (want,) = hybrid.edge_phase("red apple", 6 - steps, seed)
            assert packet.step == steps
            assert (packet.latent - want.latent).abs().max() <= 1e-4 * want.latent.abs().max()
        assert granted > 0
        for child in children:
            assert not os.path.exists(f"/proc/{child}") or _name(child) != "python"
    finally:
        first.end(1.0)
        if second is not None:
            assert second.end() == 0


def test_a_term_signal_lets_who_is_here_finish(tmp_path, hybrid):
    with running("--num-steps", "50", "--max-batch", "4", "--policy", "first_come", users=["ann"]) as edge:
        with client(edge) as me:
            answer = me.post("/v1/requests", json=BODY).json()
            assert answer["steps"] > 0
            edge.process.terminate()
            got = me.get(f"/v1/requests/{answer['id']}/packet", params={"wait": 25})
            assert got.status_code == 200
            late = me.post("/v1/requests", json=BODY)
            assert late.status_code == 503 and "retry-after" in late.headers
            me.delete(f"/v1/requests/{answer['id']}")
        assert edge.end() == 0


def test_an_edge_ends_with_whoever_started_it():
    edge = start(*FEW)
    edge.process.stdin.close()  # as the system does for a parent that is killed
    assert edge.process.wait(60) == 0


def test_an_edge_for_all_says_where_others_find_it_and_nothing_of_what_they_ask():
    command = [sys.executable, "-m", "splitpoint", "edge", "--host", "0.0.0.0", "--port", "0", "--with-parent", *FEW]
    said, pipe = [], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in iter(process.stdout.readline, ""):
                said.append(line)
                if line.startswith("device"):
                    break
            url, token = re.search(r"--edge (\S+) --token (\S+)", said[-1]).groups()
            assert "//0.0.0.0" not in url
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as me:
                name = me.post("/v1/requests", json=BODY | {"prompt": "quokka"}).json()["id"]
                assert b"quokka" in me.get(f"/v1/requests/{name}/packet", params={"wait": 20}).content
                me.delete(f"/v1/requests/{name}")
        finally:
            process.terminate()
            said.append(process.communicate(timeout=40)[0])
    assert process.returncode == 0 and "quokka" not in "".join(said)


@pytest.mark.parametrize(
    "options, said",
    [
        (("--policy", "nothing"), "policy='nothing' is unknown"),
        (("--model", "nowhere"), "nowhere"),
        (("--max-batch", "0"), "max_batch=0"),
        (("--scheduler", "nothing"), "scheduler='nothing' is unknown"),
        (("--users", "../x"), "name must be"),
        (("--table", "nowhere.csv"), "table='nowhere.csv'"),
    ],
)
def test_an_edge_that_cannot_start_says_why_in_one_line(options, said):
    with pytest.raises(ValueError, match="did not start") as error:
        start(*options)
    assert said in str(error.value)


def test_a_table_of_an_earlier_start_is_taken_as_it_is(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("batch,step_s\n1,0.5\n4,0.8\n")
    with running("--max-batch", "4", "--table", str(table)) as edge:
        said = httpx.get(f"{edge.url}/v1/log", params={"token": edge.viewer}, timeout=30).json()
        assert said["table_s"] == pytest.approx([0.5, 0.6, 0.7, 0.8])


def test_a_pace_is_a_number_or_a_device():
    assert pace_of("0.25") == 0.25
    assert pace_of("iPhone 14") > 0
    for wrong, said in (("nothing", "nothing"), ("-1", "pace=-1"), ("nan", "pace=nan"), ("0", "pace=0")):
        with pytest.raises(ValueError, match=said):
            pace_of(wrong)


def _children(pid):
    try:
        return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]
    except OSError:
        return []


def _name(pid):
    try:
        return open(f"/proc/{pid}/comm").read().strip()
    except OSError:
        return ""


def test_a_student_joins_with_a_code_and_this_machine_draws(hybrid):
    with running(*FEW, "--classroom", users=["ann"]) as edge, httpx.Client(base_url=edge.url, timeout=30) as web:
        offered = web.get("/v1/classroom").json()
        assert offered["num_steps"] == 6 and "noto" in offered["styles"] and "red apple" in offered["concepts"]
        assert web.post("/v1/join", json=dict(name="dua", code="WRONG1")).status_code == 403
        token = web.post("/v1/join", json=dict(name="dua", code=edge.code.lower())).json()["token"]
        headers = {"Authorization": f"Bearer {token}"}
        answer = web.post("/v1/requests", json=BODY | {"device_step_s": 0.01}, headers=headers).json()
        got = web.post(f"/v1/requests/{answer['id']}/draw", params={"style": "twemoji"}, headers=headers)
        assert got.status_code == 200 and got.headers["content-type"] == "image/png"
        image = Image.open(io.BytesIO(got.content))
        alone = hybrid.generate("red apple", "twemoji", 6 - answer["steps"], BODY["seed"]).images[0]
        assert grey_levels(image, alone) <= 1
        again = web.post("/v1/requests", json=BODY | {"device_step_s": 0.01}, headers=headers).json()
        bad = web.post(f"/v1/requests/{again['id']}/draw", params={"style": "../x"}, headers=headers)
        assert bad.status_code == 422 and "style" in bad.json()["error"]


def test_a_share_of_the_load_really_computes(edge):
    requests = draw_requests(2.0, 4, 0, crowd=Crowd((0.02,)))
    table = asyncio.run(play(edge.url, list(edge.tokens.values()), requests, compute=1.0, scale=50.0))
    assert (table.status == 202).all() and table.computed.all() and (table.decode_s > 0).all()
