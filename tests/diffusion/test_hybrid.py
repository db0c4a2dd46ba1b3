import json
import struct
from dataclasses import replace
from threading import Event

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from splitpoint.diffusion.hybrid import GenerationCancelled, HybridPipeline, decode, hybrid_generate, to_images
from splitpoint.diffusion.mini import save_mini
from splitpoint.diffusion.packet import Packet, _checksum
from splitpoint.diffusion.users import ADAPTER_FILE, User, adapter_name, load_users, model_fingerprint
from splitpoint.files import write_meta

from .tiny_pipeline import TARGETS, make_pipeline, save_adapter

STEPS = 6
SCHEDULERS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpmsolver++": DPMSolverMultistepScheduler}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def models(folder):
    """A base pipeline with two LoRA users, and one user who fine-tuned the whole denoiser."""
    base, maker = make_pipeline(), make_pipeline()
    personal = {"ann": save_adapter(maker, folder / "ann", 1), "bob": save_adapter(maker, folder / "bob", 2)}
    tuned = make_pipeline()
    tuned.unet.conv_out.weight.data.mul_(0.7)
    tuned.save_pretrained(folder / "cyd", safe_serialization=True)
    base.save_pretrained(folder / "base")
    return load_users(base, {**personal, "cyd": folder / "cyd"})


def hybrid(models, **settings):
    edge, users = models
    return HybridPipeline(
        edge, {"me": User("me", edge), **users}, **{"num_steps": STEPS, "guidance_scale": 3.0, **settings}
    )


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_same_model_on_both_sides_is_the_unsplit_run_bit_for_bit(models, scheduler, guidance):
    run = hybrid(models, scheduler=scheduler, guidance_scale=guidance)
    edge = models[0]
    plain = StableDiffusionPipeline(
        **{**edge.components, "scheduler": SCHEDULERS[scheduler].from_config(edge.scheduler.config)},
        requires_safety_checker=False,
    )
    plain.set_progress_bar_config(disable=True)
    unsplit = plain(
        "cat",
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        output_type="latent",
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(5),
    ).images
    for split in (0, 1, 2, 4, STEPS - 1, STEPS):
        assert torch.equal(run.generate("cat", "me", split, seed=5).latents, unsplit), split
    pictures = plain(
        "cat",
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        output_type="pt",
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(5),
    ).images
    torch.testing.assert_close(decode(edge, unsplit), pictures)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_against_diffusers_own_pipeline_at_most_a_ten_thousandth_of_a_latents_scale(models, scheduler, prediction):
    edge = models[0]
    own = EulerDiscreteScheduler.from_config(edge.scheduler.config, prediction_type=prediction)
    edge = StableDiffusionPipeline(**{**edge.components, "scheduler": own}, requires_safety_checker=False)
    run = HybridPipeline(edge, {}, num_steps=STEPS, scheduler=scheduler, guidance_scale=3.0)
    ours = torch.stack([packet.latent for packet in run.edge_phase(["cat", "dog"], [0, 0], [5, 6])])
    edge.scheduler = SCHEDULERS[scheduler].from_config(own.config)
    edge.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    theirs = edge(["cat", "dog"], 16, 16, STEPS, guidance_scale=3.0, output_type="latent", generator=seeds).images
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_numbers_that_are_none_stop_the_run_instead_of_being_drawn():
    edge = make_pipeline()
    edge.unet.conv_out.weight.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match="'cat' is no longer finite after step 1"):
        HybridPipeline(edge, {}, num_steps=STEPS).edge_phase("cat", 2)


OTHER_SPACINGS = [
    ("ddim", {"timestep_spacing": "trailing"}),
    ("euler", {"use_karras_sigmas": True}),
    ("euler", {"use_exponential_sigmas": True}),
    ("dpmsolver++", {"use_karras_sigmas": True}),
]


@pytest.mark.parametrize("scheduler, options", OTHER_SPACINGS)
def test_other_spacings_of_the_steps_split_just_as_exactly(models, scheduler, options):
    run = hybrid(models, scheduler=scheduler, scheduler_options=options)
    assert not torch.equal(run.noise_levels(), hybrid(models, scheduler=scheduler).noise_levels())
    unsplit = run.generate("cat", "me", 0, seed=5).latents
    assert not torch.equal(unsplit, hybrid(models, scheduler=scheduler).generate("cat", "me", 0, seed=5).latents)
    for split in (1, 3, STEPS):
        assert torch.equal(run.generate("cat", "me", split, seed=5).latents, unsplit), split


def test_noise_levels_fall_and_are_the_same_for_every_scheduler(models):
    leading = {"timestep_spacing": "leading"}
    levels = {name: hybrid(models, scheduler=name, scheduler_options=leading).noise_levels() for name in SCHEDULERS}
    for level in levels.values():
        assert level.shape == (STEPS + 1,) and (level.diff() < 0).all()
    torch.testing.assert_close(levels["ddim"][:-1], levels["euler"][:-1])
    clean = models[0].scheduler.alphas_cumprod
    step = levels["ddim"][2]  # x = sqrt(a) (clean + sigma noise)
    assert ((1 - clean) / clean).sqrt().sub(step).abs().min() < 1e-6


def test_unknown_scheduler_options_are_refused(models):
    with pytest.raises(ValueError, match="scheduler_options holds 'karras'; valid for 'ddim': .*timestep_spacing"):
        hybrid(models, scheduler_options={"karras": True})
    with pytest.raises(ValueError, match="'clip_sample'"):
        hybrid(models, scheduler_options={"clip_sample": True})


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_batch_of_mixed_splits_agrees_with_single_runs(models, scheduler):
    run = hybrid(models, scheduler=scheduler)
    prompts, splits, seeds = ["cat", "dog", "cow", "owl"], [0, 2, 5, 6], [1, 2, 3, 4]
    users = ["ann", "bob", "cyd", "ann"]
    batch = run.generate(prompts, users, splits, seeds)
    for i, (prompt, user, split, seed) in enumerate(zip(prompts, users, splits, seeds)):
        single = run.generate(prompt, user, split, seed)
        torch.testing.assert_close(batch.latents[i : i + 1], single.latents, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_device_may_finish_its_packets_in_one_growing_batch(models, scheduler):
    run = hybrid(models, scheduler=scheduler)
    packets = run.edge_phase("cat", range(STEPS + 1), 7, share_runs=True)
    together = run.device_latents(packets, "bob")
    for packet, latent in zip(packets, together):
        torch.testing.assert_close(latent[None], run.device_latents([packet], "bob"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "batching, rows",
    [("early_exit", [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2], [0], [0]]), ("static", [[0, 1, 2]] * STEPS)],
)
def test_a_request_is_handed_over_at_its_own_step_and_not_touched_afterwards(models, batching, rows):
    seen = {}
    packets = hybrid(models).edge_phase(
        ["cat", "dog", "cow"],
        [0, 4, 2],
        batching=batching,
        on_step=lambda step, names, latents: seen.update({step: (names, latents)}),
    )
    assert [names for names, _ in seen.values()] == rows
    for request, packet in enumerate(packets):
        names, latents = seen[packet.step]
        assert torch.equal(packet.latent, latents[names.index(request)])
    assert [packet.step for packet in packets] == [6, 2, 4]


def test_static_and_early_exit_hand_over_the_same_latents(models):
    run = hybrid(models)
    packets = [run.edge_phase(["cat", "dog", "cow"], [0, 4, 2], batching=b) for b in ("early_exit", "static")]
    for early, static in zip(*packets):
        torch.testing.assert_close(early.latent, static.latent, rtol=1e-3, atol=1e-4)


def test_shared_runs_compute_one_row_and_give_every_split(models):
    run, rows = hybrid(models), []
    shared = run.edge_phase("cat", [0, 2, 6], 3, share_runs=True, on_step=lambda _, names, __: rows.append(names))
    assert rows == [[0]] * STEPS
    for packet in shared:
        alone = run.edge_phase("cat", packet.split_point, 3)[0]
        assert packet.to_bytes() == alone.to_bytes()
    mixed = run.edge_phase(["cat", "cat", "dog"], 2, [3, 4, 3], share_runs=True)
    assert len({packet.latent.sum().item() for packet in mixed}) == 3, "one prompt and one seed, or a row of one's own"


def test_noise_depends_on_the_seed_and_not_on_the_place_in_the_batch(models):
    run = hybrid(models)
    forth = run.edge_phase(["cat", "dog", "cow"], [1, 2, 3], [7, 8, 9])
    back = run.edge_phase(["cow", "dog", "cat"], [3, 2, 1], [9, 8, 7])[::-1]
    for one, other in zip(forth, back):
        assert (one.prompt, one.seed, one.step) == (other.prompt, other.seed, other.step)
        torch.testing.assert_close(one.latent, other.latent, rtol=1e-3, atol=1e-4)
    other_seed = run.edge_phase("cat", 1, 6)[0]
    assert not torch.allclose(other_seed.latent, forth[0].latent, atol=0.1)


def test_users_differ_more_the_earlier_their_own_model_takes_over(models):
    run = hybrid(models)
    apart = []
    for split in (0, 2, STEPS):
        ann, bob, cyd = run.generate("cat", ["ann", "bob", "cyd"], split, seed=1).latents
        apart.append(min((ann - bob).abs().mean(), (bob - cyd).abs().mean(), (ann - cyd).abs().mean()).item())
    assert apart[0] == 0 < apart[1] < apart[2]


def test_a_bar_is_shown_only_when_asked_for(models, capsys):
    hybrid(models).edge_phase("cat", 2)
    assert capsys.readouterr() == ("", "")
    hybrid(models).edge_phase("cat", 2, progress=True)
    out, err = capsys.readouterr()
    assert "edge" in out and err == ""  # standard error would be a red block in a notebook


def test_loading_and_using_adapters_leaves_the_edge_model_untouched(models):
    edge, users = models
    fresh = make_pipeline()
    run = hybrid(models)
    run.generate("cat", ["ann", "bob"], 3)
    expected = HybridPipeline(fresh, {}, num_steps=STEPS, guidance_scale=3.0).edge_phase("cat", 0)[0].latent
    assert torch.equal(run.edge_phase("cat", 0)[0].latent, expected)
    with users["ann"].model() as pipeline, torch.no_grad():
        context = torch.zeros(1, 16, 32)
        own = pipeline.unet(torch.ones(1, 4, 8, 8), 500, context).sample
    with torch.no_grad():
        shared, after = (unet(torch.ones(1, 4, 8, 8), 500, context).sample for unet in (fresh.unet, pipeline.unet))
    assert not torch.allclose(own, shared, atol=1e-3) and torch.equal(after, shared)


def test_guidance_off_runs_each_request_once_per_step(models):
    counts = []
    hook = models[0].unet.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    for guidance in (1.0, 1.5):
        hybrid(models, guidance_scale=guidance).edge_phase(["cat", "dog"], 0)
    hook.remove()
    assert counts == [2] * STEPS + [4] * STEPS


@pytest.mark.parametrize("scheduler, carried", [("ddim", 0), ("euler", 0), ("dpmsolver++", 1)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_packet_survives_its_trip(models, scheduler, carried, dtype):
    packet = hybrid(models, scheduler=scheduler, packet_dtype=dtype, send_embeddings=True).edge_phase("café", 2, 3)[0]
    again = Packet.from_bytes(packet.to_bytes())
    assert len(packet.history) == carried
    for name, value in vars(packet).items():
        if name in ("latent", "embeddings"):
            assert torch.equal(value, getattr(again, name)) and value.dtype == getattr(torch, dtype)
        elif name == "history":
            assert all(map(torch.equal, value, again.history))
        else:
            assert getattr(again, name) == value
    assert again.size_bits == 8 * len(packet.to_bytes()) > sum(packet.tensor_bits.values())


def test_the_smallest_packets_are_small(models):
    compact = hybrid(models, packet_dtype="float16")
    assert compact.edge_phase("cat", 2)[0].tensor_bits == {"latent": 4 * 8 * 8 * 16, "history": 0, "embeddings": 0}
    assert compact.edge_phase("cat", STEPS)[0].tensor_bits["latent"] == 0  # the seed says it all
    full = hybrid(models, send_embeddings=True).edge_phase("cat", 2)[0]
    assert full.tensor_bits == {"latent": 4 * 8 * 8 * 32, "history": 0, "embeddings": 2 * 16 * 32 * 32}


def test_half_precision_packets_change_little(models):
    exact, compact = (
        hybrid(models, packet_dtype=dtype).generate("cat", "ann", [3, STEPS], 1).latents
        for dtype in ("float32", "float16")
    )
    torch.testing.assert_close(compact[0], exact[0], rtol=0.02, atol=0.02)
    assert not torch.equal(compact[0], exact[0]) and torch.equal(compact[1], exact[1])


def test_sent_embeddings_spare_the_device_its_text_encoder(models):
    texts = []
    hook = models[0].text_encoder.register_forward_pre_hook(lambda *_: texts.append(1))
    run = hybrid(models)
    sent = hybrid(models, send_embeddings=True).edge_phase("cat", 3)[0]
    texts.clear()
    carried = run.device_latents([sent], "ann")
    assert not texts
    encoded = run.device_latents(run.edge_phase("cat", 3), "ann")
    hook.remove()
    assert texts and torch.equal(carried, encoded)


@pytest.mark.parametrize("place", [0, 9, 20, 300, -40, -1])
def test_a_changed_packet_is_refused(models, place):
    content = bytearray(hybrid(models).edge_phase("cat", 2)[0].to_bytes())
    content[place] ^= 1
    with pytest.raises(ValueError, match="packet"):
        Packet.from_bytes(content)


def test_a_cut_or_malformed_packet_is_refused(models):
    content = hybrid(models).edge_phase("cat", 2)[0].to_bytes()
    for part in (b"", content[:8], content[:-1], content[:200], content + b"x"):
        with pytest.raises(ValueError, match="packet"):
            Packet.from_bytes(part)
    length = struct.unpack("<I", content[8:12])[0]
    header = json.loads(content[12 : 12 + length])
    lies = [
        {**header, "extra": 1},
        {**header, "tensors": [["latent", "float32", [9, 8, 8]]]},
        {**header, "tensors": [["latent", "object", [4, 8, 8]]]},
        {**header, "tensors": []},
        {**header, "step": 99},
        {k: v for k, v in header.items() if k != "seed"},
    ]
    for lie in lies:
        text = json.dumps(lie).encode()
        body = content[:8] + struct.pack("<I", len(text)) + text + content[12 + length : -16]
        with pytest.raises(ValueError, match="packet|step|belong"):
            Packet.from_bytes(body + _checksum(body))


def test_a_packet_of_another_model_is_refused(models):
    packet = hybrid(models).edge_phase("cat", 2)[0]
    for other in (make_pipeline(seed=1), make_pipeline(scaling=0.5)):
        with pytest.raises(ValueError, match="from another model"):
            hybrid(models).device_phase(packet, User("eve", other))


def test_a_packet_whose_numbers_do_not_fit_is_refused(models):
    run = hybrid(models)
    packet = run.edge_phase("cat", 2)[0]
    with pytest.raises(ValueError, match="another shape"):
        run.device_latents([replace(packet, latent=packet.latent[:, :4])], "ann")
    with pytest.raises(ValueError, match="must agree on num_steps, guidance_scale and scheduler"):
        run.device_latents([packet, hybrid(models, guidance_scale=2.0).edge_phase("cat", 2)[0]], "ann")
    packet.latent[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        Packet.from_bytes(packet.to_bytes())


def test_the_fingerprint_survives_half_precision_and_tells_predictions_apart():
    pipeline, other = make_pipeline(), make_pipeline()
    assert model_fingerprint(pipeline) == model_fingerprint(make_pipeline().to(torch.float16))
    other.scheduler.register_to_config(prediction_type="v_prediction")
    assert model_fingerprint(pipeline) != model_fingerprint(other)


def test_cancelling_stops_between_two_steps(models):
    stop, steps = Event(), []

    def watch(step, names, latents):
        steps.append(step)
        if step == 2:
            stop.set()

    with pytest.raises(GenerationCancelled, match="before step 2 of 6"):
        hybrid(models).edge_phase("cat", 0, on_step=watch, cancel=stop)
    assert steps == [1, 2]
    with pytest.raises(GenerationCancelled):
        hybrid(models).generate("cat", "ann", STEPS, cancel=lambda: True)


def test_pipelines_and_adapters_from_folders_run_end_to_end(models, folder):
    edge, users = load_users(str(folder / "base"), personal=[folder / "ann", str(folder / "bob"), folder / "cyd"])
    assert list(users) == ["ann", "bob", "cyd"] and users["ann"].pipeline is edge is not users["cyd"].pipeline
    output = hybrid_generate("cat", list(users.values()), [2, 4, 6], STEPS, seed=1, pipeline=edge, guidance_scale=3.0)
    expected = hybrid(models).generate("cat", ["ann", "bob", "cyd"], [2, 4, 6], 1)
    torch.testing.assert_close(output.latents, expected.latents, rtol=1e-3, atol=1e-4)
    assert [image.size for image in output.images] == [(16, 16)] * 3
    assert len({image.tobytes() for image in output.images}) == 3


def test_an_adapter_may_be_stored_as_peft_stores_one(models, folder, tmp_path):
    weights = load_file(folder / "ann" / "pytorch_lora_weights.safetensors")
    save_file(
        {key.replace("unet.", "base_model.model.", 1): value for key, value in weights.items()},
        tmp_path / "adapter_model.safetensors",
    )
    LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS).save_pretrained(tmp_path)
    edge, users = load_users(make_pipeline(), {"ann": tmp_path})
    here, there = (
        HybridPipeline(pipeline, loaded, num_steps=STEPS).generate("cat", "ann", 4).latents
        for pipeline, loaded in ((edge, users), models)
    )
    assert torch.equal(here, there)


def test_a_merged_adapter_draws_the_same_and_leaves_the_edge_without_adapters(models, folder):
    edge, users = load_users(make_pipeline(), [folder / "ann"], merge=True)
    assert users["ann"].pipeline is not edge and not hasattr(edge.unet, "peft_config")
    merged = HybridPipeline(edge, users, num_steps=STEPS).generate("cat", "ann", [0, 4]).latents
    torch.testing.assert_close(
        merged, hybrid(models, guidance_scale=7.5).generate("cat", "ann", [0, 4]).latents, rtol=1e-2, atol=1e-3
    )
    assert not torch.equal(*merged)


def test_adapters_and_pipelines_of_another_model_are_refused(models, folder, tmp_path):
    wide = make_pipeline(width=64)
    wrong = save_adapter(wide, tmp_path / "wide", 3)
    with pytest.raises(ValueError, match="not a LoRA for this model"):
        load_users(models[0], {"dan": wrong})
    assert set(models[0].unet.peft_config) == {adapter_name("ann"), adapter_name("bob")}
    make_pipeline(seed=1).save_pretrained(tmp_path / "foreign")
    with pytest.raises(ValueError, match="not a fine-tune of the base"):
        load_users(models[0], [tmp_path / "foreign"])
    with pytest.raises(ValueError, match="neither"):
        load_users(models[0], [tmp_path])
    with pytest.raises(ValueError, match="twice"):
        load_users(models[0], [folder / "ann", "elsewhere/ann"])
    with pytest.raises(ValueError, match="empty"):
        load_users(models[0], [])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(split_points=STEPS + 1), r"split_points=7 is outside \[0, 6\]"),
        (dict(split_points=-1), "split_points=-1"),
        (dict(split_points=1.5), "split_points=1.5 is not a whole number"),
        (dict(split_points=float("nan")), "split_points=nan"),
        (dict(split_points=[1, 2, 3]), "lengths differ"),
        (dict(split_points=[]), "split_points is empty"),
        (dict(seed=-1), "seed=-1"),
        (dict(prompts=["cat", " "]), "prompts=' '"),
        (dict(prompts=[]), "prompts is empty"),
        (dict(users=[]), "users is empty"),
        (dict(users="zoe"), "user='zoe' is unknown; there are me, ann, bob, cyd"),
        (dict(batching="dynamic"), "batching='dynamic' is unknown; there are: early_exit, static"),
    ],
)
def test_bad_requests_are_refused_before_any_work(models, arguments, message):
    calls = []
    hook = models[0].unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        hybrid(models).generate(**{"prompts": ["cat", "dog"], "users": ["ann", "bob"], "split_points": 2, **arguments})
    hook.remove()
    assert not calls


def test_the_pipelines_own_scheduler_does_not_matter(models):
    """Stable Diffusion 1.5 ships with PNDM, whose settings know nothing of clipping."""
    edge = models[0]
    config = {key: value for key, value in edge.scheduler.config.items() if key != "clip_sample"}
    other = StableDiffusionPipeline(
        **{**edge.components, "scheduler": PNDMScheduler.from_config(config)}, requires_safety_checker=False
    )
    for scheduler in SCHEDULERS:
        packets = [
            HybridPipeline(pipeline, {}, num_steps=STEPS, scheduler=scheduler).edge_phase("cat", 2)[0]
            for pipeline in (edge, other)
        ]
        assert torch.equal(packets[0].latent, packets[1].latent)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_steps=0), r"num_steps=0 is outside \[1, 1000\]"),
        (dict(num_steps=2.5), "num_steps=2.5"),
        (dict(scheduler="pndm"), r"scheduler='pndm' is unknown; there are: ddim, euler, dpmsolver\+\+"),
        (dict(guidance_scale=float("nan")), "guidance_scale=nan"),
        (dict(packet_dtype="int8"), "packet_dtype='int8'"),
    ],
)
def test_bad_settings_are_refused(models, settings, message):
    with pytest.raises(ValueError, match=message):
        hybrid(models, **settings)


def test_a_full_edge_refuses_more(models):
    with pytest.raises(ValueError, match="max_batch=2"):
        hybrid(models, max_batch=2).edge_phase("cat", 1, [1, 2, 3])
    assert len(hybrid(models, max_batch=2).edge_phase("cat", 1, [1, 2])) == 2


def test_the_miniature_and_its_users_are_the_default():
    whole = hybrid_generate("red apple", ["noto", "openmoji"], 3, num_steps=3)
    shared = hybrid_generate("red apple", ["noto", "openmoji"], 0, num_steps=3)
    assert torch.equal(*shared.latents) and not torch.allclose(*whole.latents, atol=0.05)
    assert [image.size for image in whole.images] == [(64, 64)] * 2 and whole.packets[0].guidance_scale == 3.0
    with pytest.raises(ValueError, match="user='apple' is unknown; there are noto, twemoji, openmoji, fluent"):
        hybrid_generate("red apple", "apple", 3, num_steps=3)


def test_pictures_lie_between_zero_and_one(models):
    pictures = decode(models[0], torch.randn(2, 4, 8, 8) * 9)
    assert pictures.shape == (2, 3, 16, 16) and 0 <= pictures.min() < pictures.max() <= 1
    levels = torch.tensor([0, 0.3, 0.499, 0.999]).expand(1, 3, 1, 4)
    assert [to_images(levels)[0].getpixel((x, 0))[0] for x in range(4)] == [0, 76, 127, 255]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_split_equals_unsplit_on_a_gpu_and_is_close_to_the_cpu(folder, models):
    edge, users = load_users(folder / "base", [folder / "ann"], device="cuda")
    run = HybridPipeline(edge, users, num_steps=STEPS, guidance_scale=3.0)
    whole = run.generate("cat", User("me", edge), 0, 5).latents
    assert torch.equal(whole, run.generate("cat", User("me", edge), 3, 5).latents)
    torch.testing.assert_close(whole.cpu(), hybrid(models).generate("cat", "me", 0, 5).latents, rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_four_threads_draw_the_pictures_of_one(models):
    from concurrent.futures import ThreadPoolExecutor

    run = hybrid(models)
    names = list(run.users)
    asked = [(names[i % len(names)], 1 + i % 3, i) for i in range(24)]

    def draw(user, split, seed):
        return run.generate("a red apple", user, split, seed, progress=False).latents

    alone = [draw(*request) for request in asked]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: draw(*request), asked))
    assert all(torch.equal(one, other) for one, other in zip(alone, together))


@pytest.mark.parametrize("name", ["1", "2", "weight", "to_q", "ann-lee", "ann_lee", "default", "a.b", "\u00fcml"])
def test_users_may_have_any_name(name, tmp_path):
    edge = make_pipeline()
    folder = save_adapter(edge, tmp_path / "lora", seed=1)
    _, users = load_users(edge, personal={name: folder, name + "'s other": folder})
    assert len({user.adapter for user in users.values()}) == 2


def test_loading_again_takes_nothing_from_who_was_there(tmp_path):
    edge = make_pipeline()
    first, second = (save_adapter(edge, tmp_path / f"lora{seed}", seed=seed) for seed in (1, 2))
    _, users = load_users(edge, personal={"ann": first})
    before = HybridPipeline(edge, users, num_steps=4, guidance_scale=2.0).generate("a", "ann", 3).latents
    _, again = load_users(edge, personal={"ann": first})
    _, other = load_users(edge, personal={"ann": second})
    assert again["ann"].adapter == users["ann"].adapter != other["ann"].adapter
    after = HybridPipeline(edge, users, num_steps=4, guidance_scale=2.0).generate("a", "ann", 3).latents
    assert torch.equal(before, after)


@pytest.mark.parametrize("lie", [".lora_A.default.weight", ".lora_A.weightX", ".lora_A.x.weight"])
def test_keys_that_lie_are_refused_by_name(lie, tmp_path):
    edge = make_pipeline()
    file = save_adapter(edge, tmp_path / "lora", seed=1) / ADAPTER_FILE
    save_file({key.replace(".lora_A.weight", lie): value for key, value in load_file(file).items()}, file)
    with pytest.raises(ValueError, match=r"personal='lora'.*ends in \.lora_A"):
        load_users(edge, personal={"ann": file.parent})
    assert not getattr(edge.unet, "peft_config", {})


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    edge = make_pipeline()
    file = save_adapter(edge, tmp_path / "lora", seed=1) / ADAPTER_FILE
    state = load_file(file)
    state[next(iter(state))][0] = float("nan")
    save_file(state, file)
    with pytest.raises(ValueError, match="NaN or infinity"):
        load_users(edge, personal={"ann": file.parent})
    assert not getattr(edge.unet, "peft_config", {})
    save_file({}, file)
    with pytest.raises(ValueError, match="holds no tensor"):
        load_users(edge, personal={"ann": file.parent})


def test_an_adapter_that_its_sidecar_does_not_describe_is_refused(tmp_path):
    edge = make_pipeline()
    file = save_adapter(edge, tmp_path / "lora", seed=1) / ADAPTER_FILE
    write_meta(file, kind="trained", command="make it again")
    load_users(edge, personal={"ann": file.parent})
    state = load_file(file)
    next(iter(state.values())).view(torch.int32).view(-1)[0] ^= 1  # the last bit of one number
    save_file(state, file)
    with pytest.raises(ValueError, match="does not match the checksum .*make it again"):
        load_users(make_pipeline(), personal={"ann": file.parent})


def test_a_personal_folder_that_its_sidecar_does_not_describe_is_refused(tmp_path):
    maker, mine = make_pipeline(), tmp_path / "ann"
    save_mini(maker, mine, ["cat"], command="here", seed=0, settings={})
    assert list(load_users(maker, [mine])[1]) == ["ann"]
    file = mine / "unet" / "config.json"
    file.write_text(file.read_text().replace("1e-05", "1e-01"))
    with pytest.raises(ValueError, match="folder='ann': unet/config.json does not match the checksum"):
        load_users(maker, [mine])
