"""How the miniature is trained: first the autoencoder, then the U-Net with the text encoder.

``splitpoint train-mini --size small --out DIR --resume`` trains it again,
``--report`` draws and judges what is there.
"""

import argparse
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from splitpoint.checks import finite_number, one_of, whole_number
from splitpoint.diffusion.emoji import (
    PIXELS,
    STYLES,
    WEIGHTS_LICENCE,
    Emoji,
    default_concepts,
    emoji_table,
    known_concepts,
    load_emoji,
    unseen_concepts,
)
from splitpoint.diffusion.judges import concept_accuracy, load_concept_judge
from splitpoint.diffusion.mini import MiniPipeline, load_mini, save_mini
from splitpoint.diffusion.mini_networks import (
    SIZES,
    build_mini,
    encode_images,
    to_pixels,
    token_ids,
)
from splitpoint.diffusion.training import (
    Run,
    bfloat16_is_fast,
    denoising_loss,
    drawing_device,
    fit,
    training_device,
    writable_folder,
)
from splitpoint.files import data_path, read_meta, write_atomically, write_meta

VAE_BATCH, VAE_LEARNING_RATE = 16, 1.5e-3
OTHER_SHARE = 0.5
_COMMAND = "splitpoint train-mini"

Maps = Callable[[torch.Tensor], list[torch.Tensor]]


# --- the autoencoder ---


def fit_autoencoder(
    vae: AutoencoderKL,
    images: np.ndarray,
    steps: int,
    *,
    seed: int = 0,
    batch: int = VAE_BATCH,
    learning_rate: float = VAE_LEARNING_RATE,
    feature_maps: Maps | None = None,
    decoder_only: bool = False,
    run: Run = Run(),
) -> list[float]:
    """Train an autoencoder to give back images; then turn its latents so that each channel has mean 0 and variance 1.

    The loss is the mean logarithm of each image's squared error (what the signal-to-noise ratio in decibels measures),
    the error of its edges, and the distance of its deep features, where a network for them is given.

    Args:
        vae: trained in place; ends with a running mean of its weights.
        images: uint8 (M, 64, 64, 3).
        steps: training steps.
        seed: of the order of the images, and of the noise on latents.
        batch: images a step.
        learning_rate: its peak.
        feature_maps: pixels (B, 3, 64, 64) from -1 to 1 -> maps (B, channels, h, w), for instance ``concept_maps()``.
        decoder_only: leave the encoder and the latents as they are, so that a denoiser trained on them stays valid.
        run: checkpoint, budget and bar.

    Returns:
        the loss of every step.

    Raises:
        ValueError: for images of another shape, a number out of range, or a checkpoint that does not fit.
    """
    whole_number("batch", batch, 1)
    here = drawing_device(vae.device)
    pixels = to_pixels(images).to(here)
    vae.to(memory_format=torch.channels_last)
    decoder = ("decoder.", "post_quant_conv.")
    weights = {k: v for k, v in vae.named_parameters() if k.startswith(decoder) or not decoder_only}

    def loss(generator: torch.Generator) -> torch.Tensor:
        pick = torch.randint(len(pixels), (batch,), generator=generator, device=here)
        real = pixels[pick].to(vae.device, memory_format=torch.channels_last)
        with torch.autocast(vae.device.type, torch.bfloat16, enabled=bfloat16_is_fast(vae.device)):
            with torch.set_grad_enabled(not decoder_only):
                posterior = vae.encode(real).latent_dist
            back = vae.decode(posterior.sample(generator)).sample
            deep = _apart(feature_maps, back, real) if feature_maps else 0.0
        blur = 0.0 if decoder_only else posterior.kl().mean() / posterior.mean[0].numel()
        return picture_loss(back.float(), real) + 0.05 * deep + 1e-5 * blur

    losses = fit(
        loss,
        weights,
        steps,
        learning_rate=learning_rate,
        weight_decay=1e-4,
        mean_decay=0.995,
        seed=seed,
        title="decoder" if decoder_only else "autoencoder",
        run=run,
    )
    if not decoder_only:
        whiten_latents(vae, images)
    return losses


def picture_loss(back: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """How far pictures (B, 3, H, W) are from the real ones: mean log squared error of each, and error of the edges."""
    error = back - real
    squared = error.square().flatten(1).mean(1)  # (B,)
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return 0.1 * (squared + 2e-4).log().mean() + edges


def concept_maps(device: str | torch.device = "cpu") -> Maps:
    """Feature maps of the judge of concepts at 32 and 16 pixels; the judge of styles stays out of all training."""
    body = deepcopy(load_concept_judge().body[:9]).requires_grad_(False).to(device)

    def maps(pixels: torch.Tensor) -> list[torch.Tensor]:
        fine = body[:3](pixels)
        return [fine, body[3:](fine)]

    return maps


def _apart(maps: Maps, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    pairs = zip(maps(one), maps(other), strict=True)
    layers = [(F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean() for a, b in pairs]
    return torch.stack(layers).sum()


@torch.no_grad()
def decibels(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, uint8 (M, 64, 64, 3), after the autoencoder, (M,) in dB."""
    pixels = to_pixels(images)
    latents, _ = encode_images(vae, images)
    back = torch.cat([vae.decode(part.to(vae.device)).sample.cpu().clamp(-1, 1) for part in latents.split(64)])
    return (-10 * ((back - pixels) / 2).square().flatten(1).mean(1).log10()).numpy()


@torch.no_grad()
def whiten_latents(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Give each latent channel mean 0 and variance 1, by folding the scaling into the 1 x 1 convolutions around it."""
    mean, _ = encode_images(vae, images[:: max(1, len(images) // 1500)])
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


# --- the U-Net with the text encoder ---


def fit_denoiser(
    pipe: StableDiffusionPipeline,
    shown: Emoji,
    steps: int,
    *,
    others: Emoji | None = None,
    other_share: float = OTHER_SHARE,
    seed: int = 0,
    batch: int = 64,
    learning_rate: float = 1e-3,
    run: Run = Run(),
) -> list[float]:
    """Train U-Net and text encoder to predict the velocity of noised latents, keeping a running mean of the weights.

    Args:
        pipe: trained in place; ends with the running mean.
        shown: images with their prompts.
        steps: training steps.
        others: more images with their prompts, drawn less often each; so that a style can be learned from them.
        other_share: share of ``others`` in a batch, from 0 to below 1.
        seed: seed of order, noise and prompt dropout.
        batch: images a step.
        learning_rate: its peak.
        run: checkpoint, budget and bar.

    Returns:
        the loss of every step.

    Raises:
        ValueError: for a number out of range, or a checkpoint that does not fit.
    """
    whole_number("batch", batch, 1)
    finite_number("other_share", other_share, 0, 0.99)
    device, unet, text, schedule = pipe.unet.device, pipe.unet, pipe.text_encoder, pipe.scheduler
    here = drawing_device(device)
    sets = [shown] if others is None else [shown, others]
    mean, std = encode_images(pipe.vae, np.concatenate([part.images for part in sets]))
    mean, std = (value.to(here) * pipe.vae.config.scaling_factor for value in (mean, std))
    variants = [[name, f"a {name}"] for part in sets for name in part.concepts]
    tokens = torch.stack([token_ids(pipe.tokenizer, names) for names in variants]).to(here)  # (concepts, 2, tokens)
    empty = token_ids(pipe.tokenizer, [""])[0].to(here)
    numbers = [first + part.concept for first, part in zip((0, len(shown.concepts)), sets)]
    owner = torch.from_numpy(np.concatenate(numbers)).to(here)
    unet.to(memory_format=torch.channels_last).train()
    text.train()

    def loss(generator: torch.Generator) -> torch.Tensor:
        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator, device=here)

        pick = torch.randint(len(shown), (batch,), generator=generator, device=here)
        if others is not None:
            more = torch.randint(len(shown), len(owner), (batch,), generator=generator, device=here)
            pick = torch.where(uniform(batch) < other_share, more, pick)
        latents = mean[pick] + std[pick] * torch.randn(mean[pick].shape, generator=generator, device=here)
        ids = tokens[owner[pick], (uniform(batch) < 0.2).long()]
        ids = torch.where(uniform(batch, 1) < 0.1, empty, ids)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device)):
            context = text(ids.to(device)).last_hidden_state
        return denoising_loss(unet, schedule, latents, context, generator)

    weights = {
        **{f"unet.{k}": v for k, v in unet.named_parameters()},
        **{f"text.{k}": v for k, v in text.named_parameters()},
    }
    losses = fit(loss, weights, steps, learning_rate=learning_rate, mean_decay=0.999, seed=seed, title="U-Net", run=run)
    unet.eval()
    text.eval()
    return losses


def train_mini(
    size: str = "small",
    out: Path | None = None,
    *,
    steps: int | None = None,
    vae_steps: int | None = None,
    minutes: float = math.inf,
    concepts: Sequence[str] | None = None,
    styles: Sequence[str] = STYLES,
    other_share: float = OTHER_SHARE,
    seed: int = 0,
    resume: bool = False,
    vae: AutoencoderKL | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> MiniPipeline:
    """Train the miniature, and return it.

    Args:
        size: one of ``SIZES``.
        out: folder for the pipeline and its checkpoints; nothing is written when left out.
        steps: of U-Net and text encoder; the size's own when left out.
        vae_steps: of the autoencoder; the size's own when left out.
        minutes: a budget for all of it, which cuts the training short; with ``resume`` it goes on from there.
        concepts: what it shall know; when left out, ``default_concepts()`` ("large": all that every style has drawn).
        styles: whose drawings it shall see.
        other_share: share of drawings of other concepts in what U-Net and text encoder see; 0 shows them none.
        seed: seed of weights, order and noise.
        resume: go on from the last checkpoint in ``out``.
        vae: a trained autoencoder to reuse; "tiny" reuses the committed miniature's when left out.
        device: where to train; a GPU if there is one.
        progress: show progress bars.

    Returns:
        the trained pipeline, on ``device``.

    Raises:
        ValueError: for an unknown size, concept or style, a number out of range, a checkpoint of another size.
    """
    one_of("size", size, SIZES)
    shape = SIZES[size]
    steps = shape.unet_steps if steps is None else steps
    vae_steps = shape.vae_steps if vae_steps is None else vae_steps
    whole_number("steps", steps, 1)
    whole_number("vae_steps", vae_steps, 1)
    Run(minutes=minutes)  # refuses a budget that is none
    finite_number("other_share", other_share, 0, 0.99)
    if concepts is None:
        known = [name for name in known_concepts(styles) if name not in unseen_concepts()]
        concepts = known if size == "large" else default_concepts()
    shown, others = load_emoji(styles, concepts), other_emoji(styles, concepts)
    out = Path(out) if out is not None else None
    if out is not None:
        writable_folder("out", out)
    device = device or training_device()
    pipe = build_mini(shape, seed)
    pipe._concepts = shown.concepts
    pipe.set_progress_bar_config(disable=True)
    if vae is None and size == "tiny":
        vae = load_mini().vae
    if vae is not None:
        pipe.register_modules(vae=vae)
    pipe.to(device)
    start = time.monotonic()

    def run(part: str) -> Run:
        left = max(minutes - (time.monotonic() - start) / 60, 1e-6)
        return Run(None if out is None else out / f"checkpoint.{part}.safetensors", resume, left, progress)

    done = {}
    if vae is None:
        images = np.concatenate([shown.images] * 4 + [others.images])
        fitted = fit_autoencoder(
            pipe.vae,
            images,
            vae_steps,
            seed=seed,
            batch=shape.vae_batch,
            feature_maps=concept_maps(device),
            run=run("vae"),
        )
        done["vae_steps"] = len(fitted)
    losses = fit_denoiser(
        pipe,
        shown,
        steps,
        others=others if other_share else None,
        other_share=other_share,
        seed=seed,
        batch=shape.batch,
        learning_rate=shape.learning_rate,
        run=run("unet"),
    )
    if out is not None:
        command = f"{_COMMAND} --size {size} --steps {steps} --vae-steps {vae_steps} --seed {seed}"
        settings = asdict(shape) | done | {"unet_steps": len(losses), "final_loss": float(np.mean(losses[-200:]))}
        settings |= {"styles": list(styles), "concepts": len(shown.concepts), "other_share": other_share}
        save_mini(pipe, out, shown.concepts, command, seed, settings)
    return pipe


def improve_mini(
    folder: Path | None = None,
    out: Path | None = None,
    *,
    steps: int = 2_100,
    decoder_steps: int = 2_400,
    seed: int = 1,
    styles: Sequence[str] = STYLES,
    resume: bool = False,
    device: str | None = None,
    progress: bool | None = None,
) -> MiniPipeline:
    """Train a finished miniature further: decoder, U-Net and text encoder. Its latents stay what they are.

    Args:
        folder: of the pipeline to start from; the committed miniature's when left out.
        out: folder to write; ``folder`` itself when left out.
        steps: of U-Net and text encoder.
        decoder_steps: of the decoder.
        seed: seed of order and noise.
        styles: whose drawings it shall see.
        resume: go on from the last checkpoint in ``out``.
        device: where to train; a GPU if there is one.
        progress: show progress bars.

    Returns:
        the trained pipeline, on ``device``.

    Raises:
        ValueError: for a folder that is no pipeline or cannot be written, a number out of range, a foreign checkpoint.
    """
    whole_number("steps", steps, 1)
    whole_number("decoder_steps", decoder_steps, 1)
    folder = data_path("models", "mini") if folder is None else Path(folder)
    out = folder if out is None else Path(out)
    device = device or training_device()
    pipe = load_mini(folder, device)
    before = read_meta(folder / "model_index.json")
    writable_folder("out", out)
    shown = load_emoji(styles, pipe.concepts)

    def run(part: str) -> Run:
        return Run(out / f"checkpoint.{part}.safetensors", resume, progress=progress)

    others = other_emoji(styles, pipe.concepts)
    images = np.concatenate([shown.images] * 4 + [others.images])
    fit_autoencoder(
        pipe.vae,
        images,
        decoder_steps,
        seed=seed,
        learning_rate=1e-3,
        feature_maps=concept_maps(device),
        decoder_only=True,
        run=run("decoder"),
    )
    losses = fit_denoiser(pipe, shown, steps, others=others, seed=seed, learning_rate=4e-4, run=run("further"))
    settings = {**before["settings"], "further_unet_steps": len(losses), "further_decoder_steps": decoder_steps}
    settings["final_loss"] = float(np.mean(losses[-200:]))
    command = f"{before['command']}; {_COMMAND} --improve --steps {steps} --vae-steps {decoder_steps} --seed {seed}"
    save_mini(pipe, out, pipe.concepts, command, seed, settings)
    return pipe


def other_emoji(styles: Sequence[str], concepts: Sequence[str]) -> Emoji:
    """All drawings of what is neither one of ``concepts`` nor kept unseen, for the style alone."""
    table = [row for row in emoji_table() if any(row[style] is not None for style in styles)]
    return load_emoji(styles, sorted({row["name"] for row in table} - {*concepts, *unseen_concepts()}))


# --- what it draws, judged ---


def report(folder: Path | None = None, num_steps: int = 50, seeds: Sequence[int] = range(4)) -> dict:
    """Draw the sample grid and every concept, have the judge name them, and write ``samples.png`` into the folder.

    Args:
        folder: of the pipeline; the committed miniature's when left out.
        num_steps: denoising steps.
        seeds: of the starting noise; every concept is drawn with each.

    Returns:
        shares of pictures named right, of the grid and of all concepts, and the autoencoder's mean decibels.
    """
    whole_number("num_steps", num_steps, 1)
    folder = data_path("models", "mini") if folder is None else Path(folder)
    pipe = load_mini(folder)
    share, each, images = concept_accuracy(pipe, seeds=range(4), num_steps=num_steps)
    every, _, _ = concept_accuracy(pipe, pipe.concepts, seeds, num_steps)
    found = {
        "grid_accuracy": share,
        "each": each,
        "all_concepts_accuracy": every,
        "all_concepts_seeds": len(seeds),
        "autoencoder_decibels": float(decibels(pipe.vae, load_emoji(STYLES, pipe.concepts).images).mean()),
        "autoencoder_decibels_unseen": float(decibels(pipe.vae, load_emoji(STYLES, unseen_concepts()).images).mean()),
        "steps": num_steps,
    }
    rows = images.transpose(1, 2, 0, 3, 4).reshape(images.shape[1] * PIXELS, -1, 3)
    file = io.BytesIO()
    Image.fromarray(rows).save(file, "PNG", optimize=True)
    write_atomically(folder / "samples.png", file.getvalue())
    settings = {"prompts": list(each), "seeds": list(range(images.shape[1])), **found}
    command = f"{_COMMAND} --report"
    write_meta(
        folder / "samples.png", kind="measured", command=command, seed=0, licence=WEIGHTS_LICENCE, settings=settings
    )
    return found


def main() -> None:
    """Train the miniature, or judge what is there."""
    parser = argparse.ArgumentParser(description="Train the miniature.")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--out", type=Path, default=data_path("models", "mini"))
    parser.add_argument("--steps", type=int, help="of U-Net and text encoder")
    parser.add_argument("--vae-steps", type=int, help="of the autoencoder")
    parser.add_argument("--minutes", type=float, default=math.inf, help="cut the training short; --resume goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--report", action="store_true", help="train nothing; judge what is in --out")
    parser.add_argument("--improve", action="store_true", help="train what is in --out further, on the same latents")
    given = parser.parse_args()
    if given.report:
        print(json.dumps(report(given.out)))
        return
    print(f"training into {given.out}")
    if given.improve:
        counts = {"steps": given.steps, "decoder_steps": given.vae_steps}
        counts = {name: value for name, value in counts.items() if value is not None}
        improve_mini(given.out, **counts, seed=given.seed, resume=given.resume)
        return
    train_mini(
        given.size,
        given.out,
        steps=given.steps,
        vae_steps=given.vae_steps,
        minutes=given.minutes,
        seed=given.seed,
        resume=given.resume,
    )


if __name__ == "__main__":
    main()
