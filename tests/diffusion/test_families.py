"""Pipelines of other kinds on the same batch: SDXL, PixArt, Stable Diffusion 3; and what is refused at the door."""

import inspect

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from splitpoint.diffusion import families
from splitpoint.diffusion.batch import Request, StepBatch
from splitpoint.diffusion.families import FAMILIES, family_of
from splitpoint.diffusion.hybrid import HybridPipeline, to_images
from splitpoint.diffusion.packet import Packet
from splitpoint.diffusion.users import User, load_users

from .tiny_families import MAKERS, make_pixart, make_sd3, make_sdxl
from .tiny_pipeline import make_pipeline

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "flow_euler": FlowMatchEulerDiscreteScheduler,
}
STEPS = 5
KINDS = [(kind, sampler) for kind in ("sdxl", "pixart") for sampler in list(SCHEDULERS)[:3]] + [("sd3", "flow_euler")]


@pytest.fixture(scope="module")
def pipelines():
    return {kind: make() for kind, make in MAKERS.items()}


def own_call(pipeline, sampler, guidance, prompt="cat", seed=5):
    """Latents and picture of diffusers' own pipeline call."""
    before = pipeline.scheduler
    unbounded = {"clip_sample": False} if sampler == "ddim" else {}
    pipeline.scheduler = SCHEDULERS[sampler].from_config(before.config, **unbounded)
    more = (
        {"use_resolution_binning": False} if "use_resolution_binning" in inspect.signature(pipeline).parameters else {}
    )
    if "clean_caption" in inspect.signature(pipeline).parameters:
        more["clean_caption"] = False
    size = 8 * pipeline.vae_scale_factor
    latents, picture = (
        pipeline(
            prompt,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            height=size,
            width=size,
            generator=torch.Generator().manual_seed(seed),
            output_type=output,
            **more,
        ).images
        for output in ("latent", "pt")
    )
    pipeline.scheduler = before
    return latents, picture


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind, sampler", KINDS)
def test_a_split_run_is_diffusers_own_call(pipelines, kind, sampler, guidance):
    pipeline = pipelines[kind]
    theirs, picture = own_call(pipeline, sampler, guidance)
    run = HybridPipeline(pipeline, {}, num_steps=STEPS, guidance_scale=guidance, scheduler=sampler)
    me = User("me", pipeline)
    unsplit = run.generate("cat", me, 0, 5).latents
    assert (unsplit - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    for split in (1, 3, STEPS):
        assert torch.equal(run.generate("cat", me, split, 5).latents, unsplit), split
    ours = family_of(pipeline).decode(unsplit)
    torch.testing.assert_close(ours, picture, rtol=0, atol=1e-3)
    assert to_images(ours)[0].size == tuple(picture.shape[:-3:-1])


@pytest.mark.parametrize("kind, sampler", KINDS)
def test_rows_at_other_steps_with_other_prompts_are_what_they_would_be_alone(pipelines, kind, sampler):
    family, packets = family_of(pipelines[kind]), []
    asked = [
        Request("cat", 1, 6, 0, 1.0, sampler),
        Request("a dog", 2, 5, 2, 3.0, sampler),
        Request("owl", 3, 7, 1, 2.0, sampler),
    ]
    for requests in (asked, *([request] for request in asked)):
        batch, rows = StepBatch(family), []
        for request in requests:
            rows.append(batch.prepare(request))
            batch.admit(rows[-1])
            batch.step()
        while len(batch):
            batch.step()
        packets.append([batch.finish(row) for row in rows])
    for packet, (alone,) in zip(packets[0], packets[1:]):
        assert (packet.latent - alone.latent).abs().max() <= 1e-5 * alone.latent.abs().max()


@pytest.mark.parametrize("kind", MAKERS)
def test_conditioning_travels_and_what_does_not_fit_is_refused(pipelines, kind):
    pipeline = pipelines[kind]
    family = family_of(pipeline)
    run = HybridPipeline(
        pipeline, {}, num_steps=STEPS, guidance_scale=2.0, scheduler=family.samplers[0], send_embeddings=True
    )
    (packet,) = run.edge_phase("cat", 2)
    again = Packet.from_bytes(packet.to_bytes())
    assert {name: tuple(part.shape[1:]) for name, part in again.conditioning.items()} == family.shapes
    plain = HybridPipeline(pipeline, {}, num_steps=STEPS, guidance_scale=2.0, scheduler=family.samplers[0])
    me = User("me", pipeline)
    assert torch.equal(run.device_latents([again], me), plain.device_latents(plain.edge_phase("cat", 2), me))
    stranger = make_pipeline()
    with pytest.raises(ValueError, match="from another model"):
        run.device_latents([again], User("eve", stranger))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_folder_is_opened_as_what_it_is(pipelines, kind, tmp_path):
    pipelines[kind].save_pretrained(tmp_path / "base")
    edge, users = load_users(tmp_path / "base", {"ann": tmp_path / "base"})
    assert type(edge) is type(users["ann"].pipeline) is type(pipelines[kind])
    run = HybridPipeline(edge, users, num_steps=3, scheduler=family_of(edge).samplers[0], guidance_scale=2.0)
    whole = run.generate("cat", "ann", [0, 3], 1).latents
    assert torch.equal(*whole)


def test_a_folder_of_an_unknown_kind_is_refused_by_its_name(tmp_path):
    unet = UNet2DModel(8, 3, 3, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a DDPMPipeline, which is of no known family; there are: StableDiff"):
        load_users(tmp_path, {"ann": tmp_path})
    with pytest.raises(ValueError, match="pipeline=DDPMPipeline is of no known family"):
        HybridPipeline(DDPMPipeline(unet, DDPMScheduler()), {})


def test_pipelines_that_want_more_than_a_prompt_are_refused():
    pipeline = make_pipeline()
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match="also wants a picture"):
        family_of(pipeline)
    pipeline = make_pipeline()
    pipeline.unet.register_to_config(addition_embed_type="text_time")
    with pytest.raises(ValueError, match="addition_embed_type='text_time'"):
        family_of(pipeline)
    pipeline = make_sdxl()
    pipeline.vae.register_to_config(force_upcast=True)
    with pytest.raises(ValueError, match="overflows in float16"):
        family_of(pipeline.to(dtype=torch.float16))
    with pytest.raises(ValueError, match="scheduler='ddim' is unknown; there are: flow_euler"):
        HybridPipeline(make_sd3(), {}, num_steps=3)


def test_an_adapter_of_sdxl_is_loaded_and_one_of_pixart_is_refused(tmp_path):
    edge = make_sdxl()
    edge.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k"]), adapter_name="made")
    for key, weight in edge.unet.named_parameters():
        if "lora_B.made" in key:
            weight.data.normal_(std=0.5)
    layers = get_peft_model_state_dict(edge.unet, adapter_name="made")
    type(edge).save_lora_weights(tmp_path, unet_lora_layers=layers)
    for merge in (False, True):
        edge, users = load_users(make_sdxl(), {"ann": tmp_path}, merge=merge)
        run = HybridPipeline(edge, users, num_steps=3, guidance_scale=2.0)
        latents = run.generate("cat", "ann", [0, 3], 1).latents
        assert not torch.allclose(*latents, atol=1e-3)
    with pytest.raises(
        ValueError, match="personal='.*' is a LoRA, which diffusers does not load into a PixArtAlphaPipel"
    ):
        load_users(make_pixart(), {"ann": tmp_path})


@pytest.mark.parametrize("kind", sorted({kind.__name__ for kind in FAMILIES.values()}))
def test_a_family_is_short_enough_to_write_another(kind):
    assert len(inspect.getsource(getattr(families, kind)).splitlines()) <= 60
