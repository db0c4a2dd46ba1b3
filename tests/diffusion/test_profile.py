import csv
import json

import numpy as np
import pytest
import torch

from splitpoint.diffusion import families, networks, profile
from splitpoint.files import meta_path, read_meta

TINY = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    cross_attention_dim=8,
    attention_head_dim=4,
    norm_num_groups=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)


@pytest.fixture
def tiny(monkeypatch):
    architecture = networks.Architecture(networks.UNet2DConditionModel, TINY, 4, 8, (5, 8), "made up for this test")
    monkeypatch.setattr(profile, "architectures", lambda: {"tiny": architecture})
    return architecture


class CountedStep:
    """A step that only counts its calls, and runs out of memory from a batch size on."""

    def __init__(self, full_at=10**9, error=torch.OutOfMemoryError("full")):
        self.calls, self.order, self.full_at, self.error = {}, [], full_at, error

    def __call__(self, batch):
        def run():
            if batch >= self.full_at:
                raise self.error
            self.calls[batch] = self.calls.get(batch, 0) + 1
            self.order.append(batch)

        return run


def test_every_size_is_warmed_up_and_repeated():
    step = CountedStep()
    rows = profile.measure(step, [1, 2, 4], repeats=5, warmups=3)
    assert step.calls == {1: 8, 2: 8, 4: 8}
    assert len(rows) == 15 and all(row["step_s"] > 0 for row in rows)
    assert {(r["batch_size"], r["repeat"]) for r in rows} == {(b, r) for b in (1, 2, 4) for r in range(5)}


def test_sizes_are_interleaved_in_a_seeded_order():
    first, again, other = CountedStep(), CountedStep(), CountedStep()
    for step, seed in ((first, 0), (again, 0), (other, 1)):
        profile.measure(step, [1, 2, 4, 8], repeats=6, warmups=0, seed=seed)
    rounds = [first.order[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(r) == [1, 2, 4, 8] for r in rounds) and len({tuple(r) for r in rounds}) > 1
    assert first.order == again.order != other.order


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate …"),
    ],
)
def test_out_of_memory_ends_the_curve_and_is_reported(error):
    rows = profile.measure(CountedStep(full_at=4, error=error), [1, 2, 4, 8], repeats=2)
    assert {r["batch_size"] for r in rows if r["status"] == "ok"} == {1, 2}
    assert [r["batch_size"] for r in rows if r["status"] == "out_of_memory"] == [4]


def test_times_are_seconds_and_rates_operations_a_second(monkeypatch):
    clock = iter([5.0, 5.25])
    monkeypatch.setattr(profile.time, "perf_counter", lambda: next(clock))
    assert profile.time_once(lambda: None, torch.device("cpu")) == 0.25
    monkeypatch.setattr(profile, "measure", lambda *_, **__: [{"step_s": s} for s in (0.5, 0.25, 9.0)])
    assert profile.measure_matrix_rate("fp32", "cpu", size=4) == 2 * 4**3 / 0.5


def test_memory_that_runs_out_while_a_graph_is_captured_is_found_behind_the_broken_capture():
    """CUDA then reports the capture's end; the lack of memory is only the error's context."""
    try:
        try:
            raise torch.OutOfMemoryError("full")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    except RuntimeError as error:
        broken_capture = error
    rows = profile.measure(CountedStep(full_at=2, error=broken_capture), [1, 2], repeats=1)
    assert [(row["batch_size"], row["status"]) for row in rows] == [(2, "out_of_memory"), (1, "ok")]


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="broken"):
        profile.measure(CountedStep(full_at=4, error=RuntimeError("broken")), [1, 2, 4], repeats=2)
    with pytest.raises(RuntimeError, match="illegal memory"):
        illegal = RuntimeError("CUDA error: an illegal memory access was encountered")
        profile.measure(CountedStep(full_at=4, error=illegal), [1, 2, 4], repeats=2)


def test_table_has_the_documented_columns(tiny):
    table = profile.profile_step_latency(
        "tiny", [1, 3], dtype="bf16", mode="channels_last", guidance=True, repeats=2, device="cpu"
    )
    assert tuple(table.columns) == profile.COLUMNS and len(table) == 4
    assert (table.step_s > 0).all() and table.status.eq("ok").all()
    flop = table.groupby("batch_size").model_flop.first()
    assert flop[3] == 3 * flop[1] == 3 * 2 * networks.model_flop(tiny)


def test_operations_are_counted_as_by_hand():
    """One linear layer more in the time embedding than without: 2 * in * out operations, on shapes alone."""
    config = dict(TINY, time_embedding_dim=32)
    wider = dict(TINY, time_embedding_dim=64)
    flops = [
        networks.model_flop(networks.Architecture(networks.UNet2DConditionModel, c, 4, 8, (5, 8), ""))
        for c in (config, wider)
    ]
    resnets = [m for m in networks.UNet2DConditionModel(**config).modules() if type(m).__name__ == "ResnetBlock2D"]
    added = 2 * 8 * 32 + 2 * (64 * 64 - 32 * 32) + sum(2 * 32 * m.time_emb_proj.out_features for m in resnets)
    assert flops[1] - flops[0] == added


def test_sizes_that_would_take_too_long_are_left_out(monkeypatch):
    monkeypatch.setattr(profile, "time_once", lambda run, device: 1.0)
    kept = {
        limit: {
            row["batch_size"]
            for row in profile.measure(lambda batch: lambda: None, [1, 2, 4], repeats=5, limit_s=limit)
        }
        for limit in (4, 6, 14, 16, None)
    }
    assert kept == {4: set(), 6: {1}, 14: {1, 2}, 16: {1, 2, 4}, None: {1, 2, 4}}


def test_a_size_that_could_not_even_be_prepared_in_time_is_not_begun(monkeypatch):
    now, begun = [0.0], []
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(profile, "time_once", lambda run, device: 1.0)

    def prepare(batch):
        begun.append(batch)
        now[0] += 40.0  # as long as a compilation
        return lambda: None

    rows = profile.measure(prepare, [1, 4, 16], repeats=5, limit_s=100)
    assert begun == [1, 4] and {row["batch_size"] for row in rows} == {1, 4}


def test_measuring_leaves_the_settings_of_torch_as_they_were(tiny):
    cudnn, before = torch.backends.cudnn, (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)
    seen = []
    model = profile.build_model(tiny, torch.float32, "cpu")
    model.register_forward_hook(lambda *_: seen.append((cudnn.allow_tf32, cudnn.benchmark)))
    profile.profile_step_latency("tiny", [1], repeats=1, warmups=0, model=model, device="cpu")
    assert seen == [(False, True)] and (cudnn.allow_tf32, cudnn.benchmark) == before != (False, True)


def test_every_batch_size_of_a_compiled_curve_is_compiled(tiny, monkeypatch):
    """torch gives up after eight shapes by default, and would run the others as if not compiled, without an error."""
    compiled, real = [], torch.compile
    monkeypatch.setattr(
        families.StableDiffusion, "denoise", lambda self, latents, steps, given: latents * given["text"].mean()
    )
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **options: real(
            function, backend=lambda graph, inputs: compiled.append(graph) or graph.forward, **options
        ),
    )
    sizes = list(range(1, 11))
    table = profile.profile_step_latency("tiny", sizes, mode="compile", repeats=1, warmups=1, device="cpu")
    assert sorted(table.batch_size) == sizes and len(compiled) == len(sizes)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_plan_of_the_script_can_be_measured_and_names_each_curve_once(device):
    plan = profile.default_settings(device)
    for setting in plan:
        profile._check(setting, device)
        assert (
            list(setting.batch_sizes) == sorted(setting.batch_sizes) and setting.repeats >= 20 and setting.limit_s < 480
        )
    assert len({setting.key for setting in plan}) == len(plan)
    assert {setting.architecture for setting in plan} == {"mini", "sd15", "sdxl", "pixart"}
    assert ("mini", "fp32", "channels_last", "True") in {setting.key for setting in plan}, "08 and a recipe read it"
    modes = profile.MODES if device == "cuda" else profile.MODES[:3]
    assert {setting.mode for setting in plan} == set(modes)


@pytest.mark.parametrize("guidance", [False, True])
def test_what_is_profiled_is_the_step_of_a_batch(tiny, guidance):
    model, seen = networks.build_model(tiny, torch.float32, "cpu"), []
    model.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output[0])))
    run = profile.DenoisingStep(model, tiny, guidance=guidance).prepare(2)
    for _ in range(3):
        run()
    assert [len(latents) for latents, *_ in seen] == [4 if guidance else 2] * 3
    assert [steps.tolist() for _, steps, _ in seen] == [[999.0 - i] * len(seen[0][0]) for i in range(3)]
    assert not torch.equal(seen[0][0], seen[1][0]) and all(torch.isfinite(output).all() for *_, output in seen)


def test_a_profiled_run_begins_anew_at_its_end(tiny, monkeypatch):
    monkeypatch.setattr(profile, "MAX_STEPS", 2)
    model, seen = networks.build_model(tiny, torch.float32, "cpu"), []
    model.register_forward_hook(lambda _, inputs, output: seen.append(inputs[1].tolist()))
    run = profile.DenoisingStep(model, tiny).prepare(2)
    for _ in range(5):
        run()
    assert seen == [[500.0, 500.0], [0.0, 0.0]] * 2 + [[500.0, 500.0]]


def test_a_forward_pass_that_fails_is_not_measured_in_halves(tiny):
    model = networks.build_model(tiny, torch.float32, "cpu")

    def full(_, inputs):
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("full")

    model.register_forward_pre_hook(full)
    rows = profile.measure(profile.DenoisingStep(model, tiny).prepare, [1, 4], repeats=1, warmups=1)
    assert [(row["batch_size"], row["status"]) for row in rows] == [(4, "out_of_memory"), (1, "ok")]


def test_an_interrupted_profile_continues_and_keeps_what_it_has(tiny, tmp_path, monkeypatch):
    settings = [profile.Setting("tiny", "fp32", mode, False, (1, 2), 2, 0) for mode in ("eager", "channels_last")]
    monkeypatch.setattr(profile, "measure_matrix_rate", lambda dtype, device: 1e9)
    out, real = tmp_path / "machine.csv", profile._profile

    def cut_off(setting, *rest, **more):
        if setting.mode == "channels_last":
            raise KeyboardInterrupt
        return real(setting, *rest, **more)

    monkeypatch.setattr(profile, "_profile", cut_off)
    with pytest.raises(KeyboardInterrupt):
        profile.run_profile(out, "cpu", settings=settings)
    assert read_meta(out)["settings"]["curves"] == ["tiny fp32 eager False"]
    first = list(csv.DictReader(out.open()))
    monkeypatch.setattr(profile, "_profile", real)
    profile.run_profile(out, "cpu", settings=settings)
    rows = list(csv.DictReader(out.open()))
    assert rows[:4] == first and len(rows) == 8
    assert read_meta(out)["kind"] == "measured" and {row[profile.RATE] for row in rows} == {"1000000000.0"}


def test_a_profile_that_does_not_match_its_sidecar_is_not_continued_silently(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "measure_matrix_rate", lambda dtype, device: 1e9)
    settings = [profile.Setting("tiny", "fp32", mode, False, (1,), 1, 0) for mode in ("eager", "channels_last")]
    out = tmp_path / "machine.csv"
    profile.run_profile(out, "cpu", settings=settings[:1])
    kept = out.read_text()
    out.write_text(kept.replace("eager", "eagre"))
    with pytest.raises(ValueError, match="remove the sidecar to go on with these rows"):
        profile.run_profile(out, "cpu", settings=settings)
    out.write_text(kept)
    meta_path(out).unlink()
    profile.run_profile(out, "cpu", settings=settings)
    assert out.read_text().startswith(kept) and read_meta(out)


def test_the_sidecar_says_what_was_typed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "measure_matrix_rate", lambda dtype, device: 1e9)
    setting = profile.Setting("tiny", "fp32", "eager", False, (1,), 1, 0, 60.0)
    seen = []
    monkeypatch.setattr(profile, "default_settings", lambda device: [setting])
    monkeypatch.setattr(
        profile,
        "_profile",
        lambda asked, *rest, real=profile._profile, **more: seen.append(asked) or real(asked, *rest, **more),
    )
    monkeypatch.setattr(
        "sys.argv", ["profile", "--device", "cpu", "--out", str(tmp_path / "m.csv"), "--curve-seconds", "90"]
    )
    profile.main()
    assert [asked.limit_s for asked in seen] == [90.0]
    command = read_meta(tmp_path / "m.csv")["command"]
    assert command == "splitpoint profile --out m.csv --device cpu --curve-seconds 90"


def test_a_file_of_another_machine_is_not_continued(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "measure_matrix_rate", lambda dtype, device: 1e9)
    out, setting = tmp_path / "machine.csv", profile.Setting("tiny", "fp32", "eager", False, (1,), 1, 0)
    profile.run_profile(out, "cpu", settings=[setting])
    monkeypatch.setattr(profile, "device_name", lambda: "another processor")
    with pytest.raises(
        ValueError, match="out='machine.csv' holds measurements of .*; valid: a file of its own for another"
    ):
        profile.run_profile(out, "cpu", settings=[setting])


def test_what_is_left_out_and_what_fails_is_said(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profile, "measure_matrix_rate", lambda dtype, device: 1e9)
    monkeypatch.setattr(profile, "time_once", lambda run, device: 1.0)
    real = profile._profile
    monkeypatch.setattr(
        profile,
        "_profile",
        lambda setting, *rest, **more: real(setting, *rest, **more) if setting.mode == "eager" else {}["no compiler"],
    )
    settings = [profile.Setting("tiny", "fp32", mode, False, (1, 2, 4), 5, 0, 13.0) for mode in ("compile", "eager")]
    profile.run_profile(tmp_path / "machine.csv", "cpu", settings=settings)
    printed = capsys.readouterr().out
    assert "compile guidance=False … not available here ('no compiler')" in printed
    assert "without batch 4: longer than 13 s" in printed
    assert {row["batch_size"] for row in csv.DictReader((tmp_path / "machine.csv").open())} == {"1", "2"}


def test_the_budget_leaves_curves_for_another_run(tiny, tmp_path, capsys):
    settings = [profile.Setting("tiny", "fp32", "eager", False, (1,), 1, 0)]
    profile.run_profile(tmp_path / "machine.csv", "cpu", budget_s=-1, settings=settings)
    assert "1 curves are left" in capsys.readouterr().out and not (tmp_path / "machine.csv").exists()


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart"])
def test_published_configurations_build(name):
    """Parameter counts as the models' cards state them."""
    architecture = profile.architectures()[name]
    with torch.device("meta"):
        model = architecture.model_class(**architecture.config)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx({"sd15": 860, "sdxl": 2567, "pixart": 611}[name], rel=0.01)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(architecture="vgg"), "architecture='vgg' is unknown; there are: tiny"),
        (dict(dtype="int8"), "dtype='int8'"),
        (dict(mode="magic"), "mode='magic'"),
        (dict(mode="cuda_graphs"), "needs device='cuda'"),
        (dict(batch_sizes=[]), "batch_sizes"),
        (dict(batch_sizes=[0]), "batch_sizes=0 is outside"),
        (dict(repeats=0), "repeats=0"),
        (dict(warmups=-1), "warmups=-1"),
    ],
)
def test_bad_input_is_refused(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        profile.profile_step_latency(**(dict(architecture="tiny", device="cpu") | change))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", profile.MODES)
def test_every_mode_on_a_gpu(tiny, mode):
    table = profile.profile_step_latency(
        "tiny", [1, 2], dtype="bf16", mode=mode, guidance=True, repeats=3, device="cuda"
    )
    assert (table.step_s > 0).all() and (table.peak_memory_bytes > 0).all()


def test_sidecars_are_json_without_host_names(tiny, tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(profile, "measure_matrix_rate", lambda dtype, device: 1e9)
    profile.run_profile(
        tmp_path / "m.csv", "cpu", settings=[profile.Setting("tiny", "fp32", "eager", False, (1,), 1, 0)]
    )
    text = (tmp_path / "m.csv.meta.json").read_text()
    assert json.loads(text)["device"] and socket.gethostname() not in text and str(tmp_path) not in text
    assert np.isfinite(float(next(csv.DictReader((tmp_path / "m.csv").open()))["step_s"]))
