"""The miniature: a latent diffusion model in Stable Diffusion's own classes, small enough to train on a laptop.

Four parts, as in Stable Diffusion 1.5: an autoencoder that shrinks 64 x 64 pixels to an 8 x 8 x 8 latent, a U-Net that
removes noise from latents, a text encoder whose token embeddings steer it, and a noise schedule (the same scaled-linear
one, so that a step means the same noise level). ``diffusers.StableDiffusionPipeline`` reads and writes the folder.
``python -m splitpoint.diffusion.mini --size small --out DIR --resume`` trains it again.
"""

import argparse
import json
import os
import re
import time
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from splitpoint.diffusion.emoji import (
    PIXELS,
    STYLES,
    WEIGHTS_LICENCE,
    Emoji,
    emoji_table,
    known_concepts,
    load_emoji,
    nearest,
)
from splitpoint.diffusion.quiet import quiet
from splitpoint.diffusion.training import bfloat16_is_fast, set_rate, time_budget, training_device, update
from splitpoint.files import data_path, read_meta, write_atomically, write_meta

TOKENS = 16
GUIDANCE_SCALE = 3.0
NUM_TRAIN_STEPS = 1000
_WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


@dataclass(frozen=True)
class MiniSize:
    """How large each part is, and how it is trained.

    Attributes:
        unet_channels: width of the U-Net at 8 x 8 and at 4 x 4.
        unet_layers: residual blocks a level.
        unet_attention: whether a level looks at the text, one entry a level.
        vae_channels: width of the autoencoder at 64, 32, 16 and 8 pixels.
        text_width: features a token.
        text_layers: transformer layers of the text encoder.
        batch: images a training step of the U-Net.
        learning_rate: its peak.
        vae_minutes: minutes for the autoencoder.
        unet_minutes: minutes for U-Net and text encoder; both budgets are for one CPU core, with "large" for a GPU.
    """

    unet_channels: tuple[int, ...]
    unet_layers: int
    unet_attention: tuple[bool, ...]
    vae_channels: tuple[int, ...]
    text_width: int
    text_layers: int
    batch: int
    learning_rate: float
    vae_minutes: float
    unet_minutes: float


SIZES = {
    "tiny": MiniSize((64, 96), 1, (False, True), (16, 32, 64, 96), 64, 1, 32, 2e-3, 0.0, 1.8),
    "small": MiniSize((128, 160), 1, (False, True), (16, 32, 64, 96), 128, 2, 64, 1e-3, 25.0, 49.0),
    "large": MiniSize((256, 384), 2, (True, True), (64, 128, 192, 256), 256, 4, 256, 4e-4, 20.0, 40.0),
}


# --- loading ---


class MiniPipeline(StableDiffusionPipeline):
    """Stable Diffusion's pipeline, which also warns of words that the miniature was never shown."""

    def encode_prompt(self, prompt, *args, **kwargs):
        if prompt is not None:
            warn_unknown(prompt, self.concepts)
        return super().encode_prompt(prompt, *args, **kwargs)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names that the model was trained on."""
        return getattr(self, "_concepts", ())


def load_mini(folder: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> MiniPipeline:
    """The miniature's pipeline, ready to generate: ``load_mini()("birthday cake").images[0]``.

    Args:
        folder: a folder that ``train_mini`` wrote; ``data/models/mini`` when left out.
        device: where to run.
        dtype: arithmetic of the networks; the stored weights are float16.

    Returns:
        a ``StableDiffusionPipeline`` with ``.concepts``, the prompts it knows.

    Raises:
        ValueError: if a file is missing, damaged or not the one that was trained.
    """
    folder = data_path("models", "mini") if folder is None else Path(folder)
    for part in _WEIGHTS:
        if not (folder / part).exists():
            raise ValueError(
                f"folder={folder.name!r} holds no {part}; "
                "restore it with `git checkout -- data`, or train it with `make train-mini`"
            )
        read_meta(folder / part)
    settings = json.loads((folder / "concepts.json").read_text())
    try:
        with quiet():
            pipe = MiniPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None, local_files_only=True)
    except (OSError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"folder={folder.name!r} is not a pipeline that diffusers can read: {error}") from error
    pipe._concepts = tuple(settings["concepts"])
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def warn_unknown(prompts: str | Sequence[str], concepts: Sequence[str]) -> list[str]:
    """Warn once of the words in prompts that no known concept contains, naming the nearest concepts of the first few.

    Args:
        prompts: one prompt or several.
        concepts: names that the model was trained on.

    Returns:
        the unknown words, in order.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    known = {word for name in concepts for word in _words(name)} | _FILLERS
    unknown = list(dict.fromkeys(word for prompt in prompts for word in _words(prompt) if word not in known))
    if unknown and concepts:
        hints = [f"{word!r} (nearest concepts it knows: {', '.join(_nearby(word, concepts))})" for word in unknown[:5]]
        more = f" and {len(unknown) - 5} more words" if len(unknown) > 5 else ""
        warnings.warn(f"the miniature has never seen {', '.join(hints)}{more}", stacklevel=3)
    return unknown


def _nearby(word: str, concepts: Sequence[str]) -> list[str]:
    """Known concepts that a word brings to mind: by keyword first, then by spelling."""
    related = [name for name in _by_keyword().get(word, []) if name in set(concepts)]
    return list(dict.fromkeys(related + nearest(word, concepts)))[:3]


@torch.no_grad()
def draw(
    pipe: StableDiffusionPipeline,
    prompts: str | Sequence[str],
    seeds: Sequence[int],
    num_steps: int = 50,
    guidance_scale: float = GUIDANCE_SCALE,
    batch: int = 32,
) -> np.ndarray:
    """Generate one image for each prompt and seed.

    Args:
        pipe: any Stable-Diffusion-like pipeline.
        prompts: one for all seeds, or one for each.
        seeds: of the starting noise, one an image.
        num_steps: denoising steps.
        guidance_scale: how far the prompt pushes; 1 switches guidance off.
        batch: images at once.

    Returns:
        uint8 (M, H, W, 3).

    Raises:
        ValueError: if prompts and seeds differ in number, or there are none.
    """
    seeds = list(seeds)
    prompts = [prompts] * len(seeds) if isinstance(prompts, str) else list(prompts)
    if not seeds or len(prompts) != len(seeds):
        raise ValueError(f"prompts has {len(prompts)} entries and seeds has {len(seeds)}; valid: as many, at least 1")
    images = []
    for start in range(0, len(seeds), batch):
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[start : start + batch]]
        images.append(
            pipe(
                prompts[start : start + batch],
                num_inference_steps=num_steps,
                guidance_scale=guidance_scale,
                generator=generators,
                output_type="np",
            ).images
        )
    return (np.concatenate(images) * 255).round().astype(np.uint8)


_FILLERS = {"a", "an", "the", "of", "with", "and", "in", "on", "picture", "emoji"}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower())


@lru_cache(maxsize=1)
def _by_keyword() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in emoji_table():
        for keyword in row["keywords"]:
            found.setdefault(keyword, []).append(row["name"])
    return found


# --- building ---


def noise_scheduler() -> DDIMScheduler:
    """Stable Diffusion's scaled-linear schedule, predicting velocity, sampled by DDIM."""
    return DDIMScheduler(
        num_train_timesteps=NUM_TRAIN_STEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="leading",
    )


def build_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """CLIP's kind of tokenizer (byte pairs, ends of words marked), with each word of ``texts`` as one token."""
    from tokenizers import Tokenizer, trainers
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    fitted = Tokenizer(BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    fitted.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    fitted.train_from_iterator(
        [text.lower() for text in texts],
        trainers.BpeTrainer(
            vocab_size=8000,
            min_frequency=1,
            end_of_word_suffix="</w>",
            initial_alphabet=ByteLevel.alphabet(),
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            show_progress=False,
        ),
    )
    model = json.loads(fitted.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split()) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=TOKENS)


def build_mini(size: MiniSize, seed: int = 0) -> MiniPipeline:
    """An untrained pipeline of the given size, with random weights."""
    torch.manual_seed(seed)
    words = sorted({word for row in emoji_table() for word in _words(row["name"])} | _FILLERS)
    tokenizer = build_tokenizer(words)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.text_width,
            intermediate_size=4 * size.text_width,
            projection_dim=size.text_width,
            num_hidden_layers=size.text_layers,
            num_attention_heads=max(1, size.text_width // 32),
            max_position_embeddings=TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(size.vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(size.vae_channels),
        block_out_channels=size.vae_channels,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=PIXELS,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    down = tuple("CrossAttnDownBlock2D" if text_here else "DownBlock2D" for text_here in size.unet_attention)
    up = tuple("CrossAttnUpBlock2D" if text_here else "UpBlock2D" for text_here in reversed(size.unet_attention))
    unet = UNet2DConditionModel(
        sample_size=PIXELS // 8,
        in_channels=8,
        out_channels=8,
        block_out_channels=size.unet_channels,
        layers_per_block=size.unet_layers,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=size.text_width,
        attention_head_dim=4,
        norm_num_groups=32,
    )
    return MiniPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_mini(
    pipe: StableDiffusionPipeline, folder: Path, concepts: Sequence[str], command: str, seed: int, settings: dict
) -> None:
    """Write a pipeline as float16 safetensors, with the names it knows and a sidecar for each file of weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        halves = {name: deepcopy(getattr(pipe, name)).to(torch.float16) for name in ("unet", "vae", "text_encoder")}
        StableDiffusionPipeline(**{**pipe.components, **halves}, requires_safety_checker=False).save_pretrained(folder)
    write_atomically(folder / "concepts.json", json.dumps({"concepts": list(concepts)}, indent=0).encode())
    for part in (*_WEIGHTS, "concepts.json"):
        write_meta(
            folder / part, kind="trained", command=command, seed=seed, settings=settings, licence=WEIGHTS_LICENCE
        )


# --- training the autoencoder ---


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Images uint8 (M, 64, 64, 3) as float (M, 3, 64, 64) from -1 to 1.

    Raises:
        ValueError: for another shape or type, or none.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not len(images) or images.shape[1:] != (PIXELS, PIXELS, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"images has shape {images.shape} and type {images.dtype}; valid: uint8 (M, {PIXELS}, {PIXELS}, 3), M >= 1"
        )
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def fit_autoencoder(
    vae: AutoencoderKL,
    images: np.ndarray,
    minutes: float,
    seed: int = 0,
    batch: int = 16,
    learning_rate: float = 1.5e-3,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> list[float]:
    """Train an autoencoder to give back images; then turn its latents so that each channel has mean 0 and variance 1.

    Args:
        vae: trained in place.
        images: uint8 (M, 64, 64, 3).
        minutes: time budget; the learning rate falls to zero with it.
        seed: seed of the order of the images.
        batch: images a step.
        learning_rate: its peak.
        checkpoint: safetensors file written every three minutes, and at the end.
        resume: go on from ``checkpoint``.
        progress: show a progress bar.

    Returns:
        the mean absolute error of every step, pixel values from -1 to 1.

    Raises:
        ValueError: for images of another shape, or a checkpoint of another architecture.
    """
    pixels = to_pixels(images)
    device, rng = vae.device, torch.Generator().manual_seed(seed)
    vae.to(memory_format=torch.channels_last)
    weights = dict(vae.named_parameters())
    trained = list(weights.values())
    optimizer = torch.optim.AdamW(trained, learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    spent, errors = 0.0, []
    if resume and checkpoint is not None and checkpoint.exists():
        spent = _restore(checkpoint, weights, {}, optimizer, rng, errors)
    saved = time.monotonic()
    for part in time_budget(minutes, spent, progress, "autoencoder"):
        set_rate(optimizer, learning_rate, part, len(errors))
        x = pixels[torch.randint(len(pixels), (batch,), generator=rng)].to(device)
        posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        error = vae.decode(posterior.sample()).sample - x
        colour = (error - error.roll(1, dims=1)).abs().mean()
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        blur = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.abs().mean() + 0.5 * colour + 0.3 * edges + 1e-5 * blur
        update(optimizer, loss, trained)
        errors.append(error.detach().abs().mean().item())
        if checkpoint is not None and time.monotonic() - saved > 180:
            _checkpoint(checkpoint, weights, {}, optimizer, rng, errors, part * minutes)
            saved = time.monotonic()
    if checkpoint is not None:
        _checkpoint(checkpoint, weights, {}, optimizer, rng, errors, max(minutes, spent))
    whiten_latents(vae, images)
    return errors


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of images uint8 (M, 64, 64, 3): two float (M, 8, 8, 8).

    Raises:
        ValueError: for images of another shape or type.
    """
    found = [vae.encode(part.to(vae.device)).latent_dist for part in to_pixels(images).split(batch)]
    return torch.cat([d.mean for d in found]).cpu(), torch.cat([d.std for d in found]).cpu()


@torch.no_grad()
def whiten_latents(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Give each latent channel mean 0 and variance 1, by folding the scaling into the 1 x 1 convolutions around it."""
    mean, std = encode_images(vae, images[:: max(1, len(images) // 1500)])
    flat = mean.transpose(0, 1).flatten(1).double()
    centre, spread = flat.mean(1), flat.std(1)
    c = vae.config.latent_channels
    quant, post = vae.quant_conv, vae.post_quant_conv
    scale, shift = spread.to(quant.weight), centre.to(quant.weight)
    quant.weight[:c] /= scale[:, None, None, None]
    quant.bias[:c] = (quant.bias[:c] - shift) / scale
    quant.bias[c:] -= 2 * scale.log()
    post.bias += post.weight[:, :, 0, 0] @ shift
    post.weight *= scale[None, :, None, None]


# --- training the U-Net with the text encoder ---


def train_mini(
    size: str = "small",
    out: Path | None = None,
    minutes: float | None = None,
    concepts: Sequence[str] | None = None,
    styles: Sequence[str] = STYLES,
    seed: int = 0,
    resume: bool = False,
    vae: AutoencoderKL | None = None,
    device: str | None = None,
    progress: bool | None = None,
    vae_minutes: float | None = None,
) -> MiniPipeline:
    """Train the miniature, and return it.

    Args:
        size: one of ``SIZES``.
        out: folder for the pipeline and its checkpoints; nothing is written when left out.
        minutes: budget for U-Net and text encoder; the size's own when left out.
        concepts: what it shall know; when left out, ``default_concepts()`` ("large": all that every style has drawn).
        styles: whose drawings it shall see.
        seed: seed of weights, order and noise.
        resume: go on from the last checkpoint in ``out``.
        vae: a trained autoencoder to reuse; "tiny" reuses the committed miniature's when left out.
        device: where to train; a GPU if there is one.
        progress: show progress bars.
        vae_minutes: budget for the autoencoder; the size's own when left out.

    Returns:
        the trained pipeline, on ``device``.

    Raises:
        ValueError: for an unknown size, concept or style, a budget that is not positive, a checkpoint of another size.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r} is not one of {', '.join(SIZES)}")
    for name, value in (("minutes", minutes), ("vae_minutes", vae_minutes)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value!r} is not a positive number of minutes")
    shape = SIZES[size]
    device = device or training_device()
    if concepts is None:
        concepts = known_concepts(styles) if size == "large" else default_concepts()
    shown = load_emoji(styles, concepts)
    pipe = build_mini(shape, seed)
    pipe._concepts = shown.concepts
    pipe.set_progress_bar_config(disable=True)
    out = Path(out) if out is not None else None
    if vae is None and size == "tiny":
        vae = load_mini().vae
    if vae is not None:
        pipe.register_modules(vae=vae)
    pipe.to(device)
    vae_budget = shape.vae_minutes if vae_minutes is None else vae_minutes
    if vae is None:
        everything = load_emoji(styles)
        fit_autoencoder(
            pipe.vae,
            np.concatenate([shown.images] * 3 + [everything.images]),
            vae_budget,
            seed,
            checkpoint=None if out is None else out / "checkpoint.vae.safetensors",
            resume=resume,
            progress=progress,
        )
    budget = shape.unet_minutes if minutes is None else minutes
    losses = fit_denoiser(
        pipe,
        shown,
        budget,
        seed,
        shape.batch,
        shape.learning_rate,
        checkpoint=None if out is None else out / "checkpoint.unet.safetensors",
        resume=resume,
        progress=progress,
    )
    if out is not None:
        command = f"python -m splitpoint.diffusion.mini --size {size} --minutes {budget:g}"
        if vae_minutes is not None:
            command += f" --vae-minutes {vae_minutes:g}"
        save_mini(
            pipe,
            out,
            shown.concepts,
            command,
            seed,
            {
                **asdict(shape),
                "vae_minutes": vae_budget,
                "unet_minutes": budget,
                "styles": list(styles),
                "concepts": len(shown.concepts),
                "unet_steps": len(losses),
                "final_loss": float(np.mean(losses[-200:])),
            },
        )
    return pipe


def fit_denoiser(
    pipe: StableDiffusionPipeline,
    shown: Emoji,
    minutes: float,
    seed: int = 0,
    batch: int = 64,
    learning_rate: float = 1e-3,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> list[float]:
    """Train U-Net and text encoder to predict the velocity of noised latents, keeping a running mean of the weights.

    Args:
        pipe: trained in place; ends with the running mean.
        shown: images with their prompts.
        minutes: time budget; the learning rate falls to zero with it.
        seed: seed of order, noise and prompt dropout.
        batch: images a step.
        learning_rate: its peak.
        checkpoint: safetensors file written every three minutes.
        resume: go on from ``checkpoint``.
        progress: show a progress bar.

    Returns:
        the loss of every step.

    Raises:
        ValueError: for a checkpoint of another architecture.
    """
    device, unet, text = pipe.unet.device, pipe.unet, pipe.text_encoder
    generator = torch.Generator().manual_seed(seed)
    mean, std = encode_images(pipe.vae, shown.images)
    mean, std = mean * pipe.vae.config.scaling_factor, std * pipe.vae.config.scaling_factor
    variants = [[name, f"a {name}"] for name in shown.concepts]
    tokens = torch.stack([token_ids(pipe.tokenizer, names) for names in variants])
    empty = token_ids(pipe.tokenizer, [""])[0]
    owner = torch.from_numpy(shown.concept)
    unet.to(memory_format=torch.channels_last).train()
    text.train()
    weights = {
        **{f"unet.{k}": v for k, v in unet.named_parameters()},
        **{f"text.{k}": v for k, v in text.named_parameters()},
    }
    trained = list(weights.values())
    optimizer = torch.optim.AdamW(trained, learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    average = {name: w.detach().clone() for name, w in weights.items()}
    spent, losses = 0.0, []
    if resume and checkpoint is not None and checkpoint.exists():
        spent = _restore(checkpoint, weights, average, optimizer, generator, losses)
    schedule, saved = pipe.scheduler, time.monotonic()
    for part in time_budget(minutes, spent, progress, "U-Net"):
        set_rate(optimizer, learning_rate, part, len(losses))
        pick = torch.randint(len(owner), (batch,), generator=generator)
        latents = mean[pick] + std[pick] * torch.randn(mean[pick].shape, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        t = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch * NUM_TRAIN_STEPS
        t = t.long().clamp(max=NUM_TRAIN_STEPS - 1)
        ids = tokens[owner[pick], (torch.rand(batch, generator=generator) < 0.2).long()]
        ids = torch.where(torch.rand(batch, 1, generator=generator) < 0.1, empty, ids)
        noisy = schedule.add_noise(latents, noise, t).to(device).contiguous(memory_format=torch.channels_last)
        target = schedule.get_velocity(latents, noise, t).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device)):
            context = text(ids.to(device)).last_hidden_state
            guess = unet(noisy, t.to(device), context).sample
        loss = (guess.float() - target).square().mean()
        update(optimizer, loss, trained)
        losses.append(loss.item())
        keep = min(0.999, (1 + len(losses)) / (10 + len(losses)))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), trained, 1 - keep)
        if checkpoint is not None and time.monotonic() - saved > 180:
            _checkpoint(checkpoint, weights, average, optimizer, generator, losses, part * minutes)
            saved = time.monotonic()
    if checkpoint is not None:
        _checkpoint(checkpoint, weights, average, optimizer, generator, losses, minutes)
    _assign(weights, average)
    unet.eval()
    text.eval()
    return losses


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Token numbers of texts, (texts, tokens), each padded to the tokenizer's length."""
    return tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def _assign(weights: dict, values: dict) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


def _checkpoint(path: Path, weights: dict, average: dict, optimizer, generator, losses: list, spent: float) -> None:
    state = {
        f"{kind}.{name}": value.contiguous()
        for name, weight in weights.items()
        for kind, value in (("weight", weight.detach()), *optimizer.state[weight].items())
    }
    state |= {f"average.{name}": value.contiguous() for name, value in average.items()}
    state |= {
        "generator": generator.get_state(),
        "losses": torch.tensor(losses),
        "spent": torch.tensor([spent], dtype=torch.float64),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name("." + path.name)
    save_file(state, draft)
    os.replace(draft, path)


def _restore(path: Path, weights: dict, average: dict, optimizer, generator, losses: list) -> float:
    state = load_file(path)
    wrong = [n for n, w in weights.items() if f"weight.{n}" not in state or state[f"weight.{n}"].shape != w.shape]
    if wrong:
        raise ValueError(
            f"checkpoint {path.name} is of another architecture: {wrong[0]} does not fit; "
            "train into an empty folder or give the same size"
        )
    for name, weight in weights.items():
        weight.data.copy_(state[f"weight.{name}"])
        means = {key: state[f"{key}.{name}"].to(weight.device) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": state[f"step.{name}"], **means}
    for name, value in average.items():
        value.copy_(state[f"average.{name}"])
    generator.set_state(state["generator"])
    losses.extend(state["losses"].tolist())
    return float(state["spent"])


def default_concepts() -> tuple[str, ...]:
    """The concepts of the committed miniature: drawn by every style, told apart at a glance."""
    path = data_path("emoji", "concepts.txt")
    read_meta(path)
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the miniature.")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--out", type=Path, default=data_path("models", "mini"))
    parser.add_argument("--minutes", type=float, help="for U-Net and text encoder")
    parser.add_argument("--vae-minutes", type=float, help="for the autoencoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    train_mini(
        given.size, given.out, given.minutes, seed=given.seed, resume=given.resume, vae_minutes=given.vae_minutes
    )
