"""Edges as a Ray Serve application: two replicas for real, and the same in one process."""

import os
import select
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import pytest

pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")

from splitpoint.diffusion.hybrid import load_mini_hybrid
from splitpoint.diffusion.packet import Packet
from splitpoint.serving import ray_app
from splitpoint.serving.device import Device
from splitpoint.serving.ray_app import RayOptions, app, running_on_ray

from ..test_recipes import run
from .pretend_engine import PretendEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray's own definitions
]

FEW = RayOptions(edges=2, policy="first_come", num_steps=6, max_batch=4, users="ann,ben", num_cpus=0.5)
BODY = dict(prompt="red apple", seed=3, device_step_s=5.0, alpha=0.0)


def descendants(pid):
    """Processes that this one started, and theirs."""
    found = set()
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        found.add(child)
        try:
            found |= descendants(child)
        except (FileNotFoundError, ProcessLookupError):
            pass  # ended meanwhile
    return found


@contextmanager
def all_end(longest_s=30.0):
    """Whatever the block announces in its list has ended soon after it; each is held by a handle, not by its number."""
    started = []
    yield started
    still = [handle for handle in started if not select.select([handle], [], [], longest_s)[0]]
    for handle in started:
        os.close(handle)
    assert not still, f"{len(still)} of {len(started)} processes are left"


@pytest.fixture(scope="module")
def hybrid():
    return load_mini_hybrid(num_steps=6)


def test_two_replicas_serve_as_one_edge_does_and_leave_nothing_behind(hybrid, monkeypatch):
    before = descendants(os.getpid())
    with all_end() as started, running_on_ray(FEW) as edges:
        headers = {"Authorization": f"Bearer {edges.tokens['ann']}"}
        with httpx.Client(base_url=edges.url, headers=headers, timeout=60) as me, ThreadPoolExecutor(8) as pool:
            assert me.get("/healthz").json()["ok"]
            assert me.post("/v1/requests", json=BODY, headers={"Authorization": "Bearer forged"}).status_code == 401
            asking = [dict(json=BODY | {"seed": seed}, headers={"Idempotency-Key": f"k{seed}"}) for seed in range(8)]
            answers = [one.json() for one in pool.map(lambda ask: me.post("/v1/requests", **ask), asking)]
            granted = [(seed, answer) for seed, answer in enumerate(answers) if answer["granted"]]
            assert {answer["id"].split("-")[0] for _, answer in granted} == {"0", "1"}
            for seed, answer in granted:
                got = me.get(f"/v1/requests/{answer['id']}/packet", params={"wait": 25})
                assert got.status_code == 200 and me.post("/v1/requests", **asking[seed]).json()["id"] == answer["id"]
                packet = Packet.from_bytes(got.content)
                (alone,) = hybrid.edge_phase("red apple", answer["split_point"], seed)
                assert (packet.latent - alone.latent).abs().max() <= 1e-4 * alone.latent.abs().max()
                assert me.delete(f"/v1/requests/{answer['id']}").json() == {"state": "cancelled"}
            served = [me.get(f"/edges/{n}/metrics", params={"token": edges.viewer}).text for n in range(2)]
            assert all("splitpoint_step_seconds_count" in text for text in served)
            device = Device(edges.url, edges.tokens["ben"], hybrid.users["noto"], step_s=5.0, num_steps=6)
            drawn = device.draw("house", 5)
            device.close()
            assert drawn.where == "edge"
        monkeypatch.setattr(ray_app, "running_on_ray", lambda options: nullcontext(edges))  # Ray is there already
        found = run("An edge on Ray")
        packet = Packet.from_bytes(found["packet"])
        assert packet.prompt == "red apple" and packet.step == found["answer"]["steps"] > 0
        started += [os.pidfd_open(process) for process in descendants(os.getpid()) - before]
        assert len(started) > 6  # Ray's own, two replicas, their engines


def test_the_application_in_one_process(monkeypatch):
    from ray import serve

    monkeypatch.setattr(ray_app, "ProcessEngine", lambda options: PretendEngine(options.num_steps, options.max_batch))
    application, given, _ = ray_app._application(FEW)
    door = serve.run(application, name="in-process", _local_testing_mode=True)
    headers = {"authorization": f"Bearer {given['ann']}"}
    body = b'{"prompt": "cat", "seed": 1, "device_step_s": 1.0, "alpha": 0.0}'
    status, _, content = door.answer.remote("POST", "/v1/requests", b"", headers, body).result()
    assert status == 202 and b'"granted":true' in content
    status, _, content = door.answer.remote("GET", "/healthz", b"", {}, b"").result()
    assert status == 200


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(edges=0), "edges"),
        (dict(num_gpus=-1), "num_gpus"),
        (dict(nothing=1), "nothing"),
        (dict(policy=3), "policy"),
        (dict(max_batch="many"), "max_batch"),
    ],
)
def test_options_that_are_none_are_refused_by_name(wrong, said):
    with pytest.raises(ValueError, match=said):
        RayOptions(**wrong)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(max_batch=0), "max_batch=0"),
        (dict(dtype="float8"), "dtype='float8' is unknown"),
        (dict(policy="nothing"), "policy='nothing' is unknown"),
        (dict(policy="window_plan"), "plans windows"),
        (dict(users="../x"), "name must be"),
        (dict(tokens="nowhere.json"), "tokens='nowhere.json'"),
        (dict(table="nowhere.csv"), "table='nowhere.csv'"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_replica_starts(wrong, said):
    with pytest.raises(ValueError, match=said):
        app(RayOptions(**wrong))


def test_options_come_as_text_from_a_command_line():
    options = RayOptions.model_validate(dict(edges="3", num_gpus="0.5", users="ann", table="steps.csv"))
    assert (options.edges, options.num_gpus, options.engine().device) == (3, 0.5, "cuda")
    assert RayOptions().engine().device == "cpu"
