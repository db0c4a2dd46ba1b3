"""What an edge gives to browsers: the export, the runtime's checksums, and the addresses."""

import io
import tarfile

import httpx
import pytest
import torch

from splitpoint.diffusion.hybrid import load_mini_hybrid
from splitpoint.diffusion.mini_networks import token_ids
from splitpoint.diffusion.packet import Packet
from splitpoint.diffusion.sampler import step_table
from splitpoint.serving import browser_export, browser_files
from splitpoint.serving.processes import running

pytestmark = pytest.mark.slow

needs_export = pytest.mark.skipif(bool(browser_export.missing()), reason="needs pip install 'splitpoint[browser]'")


@pytest.fixture(scope="module")
def hybrid():
    return load_mini_hybrid(num_steps=6)


@pytest.fixture(scope="module")
def models(hybrid):
    return browser_export.exported(hybrid)


@needs_export
def test_files_are_pytorchs_numbers_at_half_the_size_and_made_once(hybrid, models):
    listed = browser_export.read_list(models)
    assert set(listed) == {*(f"unet-{name}.onnx" for name in hybrid.users), "text_encoder.onnx", "decoder.onnx"}
    assert all(0 < facts["difference"] <= 1e-4 for facts in listed.values())
    weights = sum(weight.numel() for name, weight in hybrid.pipeline.unet.named_parameters() if "lora" not in name)
    assert 2 * weights < listed["unet-noto.onnx"]["bytes"] < 2.5 * weights
    assert len({listed[f"unet-{name}.onnx"]["sha256"] for name in hybrid.users}) == len(hybrid.users)
    written = (models / "unet-noto.onnx").stat().st_mtime_ns
    assert browser_export.exported(hybrid) == models
    assert (models / "unet-noto.onnx").stat().st_mtime_ns == written


@needs_export
def test_a_file_that_differs_from_pytorch_is_refused(tmp_path):
    inputs = {"latents": torch.ones(2, 3)}
    network = torch.nn.Linear(3, 1).requires_grad_(False)
    right = network(inputs["latents"])
    assert browser_export._export(network, tmp_path / "a.onnx", inputs, "out", right) <= 1e-6
    with pytest.raises(ValueError, match="a.onnx differs from PyTorch by"):
        browser_export._export(network, tmp_path / "a.onnx", inputs, "out", right + 0.001)
    with pytest.raises(ValueError, match="differs"):
        browser_export._export(network, tmp_path / "a.onnx", inputs, "out", right * float("nan"))


def test_only_the_package_that_was_tested_becomes_the_runtime(scratch_project):
    for content in (b"", b"no package", _package()):
        file = scratch_project / "other.tgz"
        file.write_bytes(content)
        with pytest.raises(ValueError, match="tarball='other.tgz' is not onnxruntime-web@"):
            browser_files.fetch_runtime(file)
    with pytest.raises(ValueError, match="tarball='none.tgz' cannot be read"):
        browser_files.fetch_runtime(scratch_project / "none.tgz")
    assert not browser_files.has_runtime()


def test_a_package_with_the_right_name_and_another_script_is_refused(scratch_project, monkeypatch):
    file = scratch_project / "other.tgz"
    file.write_bytes(_package())
    monkeypatch.setattr(browser_files, "INTEGRITY", _integrity(file.read_bytes()))
    with pytest.raises(ValueError, match="holds another ort.wasm.bundle.min.mjs"):
        browser_files.fetch_runtime(file)
    monkeypatch.setattr(browser_files, "RUNTIME", dict.fromkeys(browser_files.RUNTIME, _integrity(b"script")))
    assert browser_files.fetch_runtime(file) == browser_files.runtime_folder()
    assert browser_files.has_runtime()
    (browser_files.runtime_folder() / browser_files.WASM).write_bytes(b"damaged")
    assert not browser_files.has_runtime()


def test_without_npm_the_files_come_from_where_pages_take_them(scratch_project, monkeypatch):
    asked = []

    def get(address, **_):
        asked.append(address)
        return httpx.Response(200, content=b"script", request=httpx.Request("GET", address))

    monkeypatch.setattr(browser_files.shutil, "which", lambda name: None)
    monkeypatch.setattr(httpx, "get", get)
    with pytest.raises(ValueError, match="the CDN holds another ort.wasm.bundle.min.mjs"):
        browser_files.fetch_runtime()
    assert not browser_files.has_runtime()
    monkeypatch.setattr(browser_files, "RUNTIME", dict.fromkeys(browser_files.RUNTIME, _integrity(b"script")))
    browser_files.fetch_runtime()
    assert browser_files.has_runtime() and set(asked) == {browser_files.CDN_FOLDER + n for n in browser_files.RUNTIME}
    monkeypatch.setattr(httpx, "get", lambda address, **_: (_ for _ in ()).throw(httpx.ConnectError("no route")))
    with pytest.raises(ValueError, match="could not be fetched: ConnectError"):
        browser_files.fetch_runtime()


@pytest.mark.parametrize("bad", [None, 3, "", b"x", object(), "none"])
def test_bad_arguments_are_named(bad, hybrid, tmp_path):
    with pytest.raises(ValueError, match="folder"):
        browser_export.read_list(bad)
    with pytest.raises(ValueError, match="hybrid"):
        browser_export.exported(bad)
    with pytest.raises(ValueError, match="folder"):
        browser_files.served_files(bad)
    if bad is not None:
        with pytest.raises(ValueError, match="tarball"):
            browser_files.fetch_runtime(bad)


@needs_export
def test_a_style_without_a_file_is_named(models):
    with pytest.raises(ValueError, match="styles='unet-nothing.onnx'"):
        browser_files.offer(models, ("noto", "nothing"))


@needs_export
def test_the_addresses_of_a_class(hybrid, models):
    options = ("--num-steps", "6", "--max-batch", "4", "--policy", "first_come", "--classroom", "--drain", "0")
    with running(*options, users=["ann", "ben"]) as edge, httpx.Client(base_url=edge.url, timeout=30) as web:
        page = web.get("/student")
        assert "'wasm-unsafe-eval'" in page.headers["content-security-policy"]
        assert "unsafe-eval" not in web.get("/").headers["content-security-policy"]
        told = web.get("/v1/classroom").json()["browser"]
        assert told["fingerprint"] == hybrid.model and told["latent_shape"] == list(hybrid.family.latent_shape)
        got = web.get(told["unets"]["noto"]["url"])
        assert got.content == (models / "unet-noto.onnx").read_bytes() and "immutable" in got.headers["cache-control"]
        for sampler in hybrid.family.samplers:
            table = web.get(f"/v1/tables/{sampler}").json()
            expected = step_table(sampler, table["config"], 6)
            assert torch.equal(torch.tensor(table["rows"]), expected.values)
            assert table["remembers"] == list(expected.remembers)
        for path in (
            "/browser/nothing",
            "/browser/..%2f..%2fREADME.md",
            "/browser/exported.json",
            "/v1/tables/nothing",
        ):
            assert web.get(path).status_code == 404
        ann, ben = ({"Authorization": f"Bearer {edge.tokens[name]}"} for name in ("ann", "ben"))
        ask = lambda step_s: web.post(
            "/v1/requests", json=dict(prompt="Red  apple ❤", seed=5, device_step_s=step_s, alpha=0.0), headers=ann
        ).json()
        home, granted = ask(0.001), ask(0.5)
        assert (home["granted"], granted["granted"]) == (False, True)
        whole = web.get(f"/v1/requests/{home['id']}/whole", headers=ann)
        packet = Packet.from_bytes(whole.content)
        same = hybrid.edge_phase("Red  apple ❤", 6, 5)[0]
        assert packet.step == 0 and (packet.prompt, packet.seed) == (same.prompt, 5)
        assert (packet.latent == torch.randn((1, *hybrid.family.latent_shape), generator=torch.manual_seed(5))).all()
        tokens = web.get(f"/v1/requests/{home['id']}/tokens", headers=ann).json()
        assert tokens == token_ids(hybrid.pipeline.tokenizer, ["Red  apple ❤", ""]).tolist()
        assert web.get(f"/v1/requests/{granted['id']}/whole", headers=ann).status_code == 409
        for part in ("whole", "tokens", "packet?hold=1"):
            assert web.get(f"/v1/requests/{home['id']}/{part}").status_code == 401
            assert web.get(f"/v1/requests/{home['id']}/{part}", headers=ben).status_code == 404
        held = web.get(f"/v1/requests/{granted['id']}/packet", params=dict(wait=20, hold=1), headers=ann)
        assert Packet.from_bytes(held.content).step == granted["steps"]


def _package() -> bytes:
    """A tarball in npm's form with other files in it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as package:
        for name in browser_files.RUNTIME:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = 6
            package.addfile(member, io.BytesIO(b"script"))
    return made.getvalue()


def _integrity(content: bytes) -> str:
    import base64
    import hashlib

    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()
