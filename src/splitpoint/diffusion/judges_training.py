"""How the judges are trained: on real drawings, distorted at random, half of them through the autoencoder first.

``splitpoint train-judges`` trains all three again;
``--concepts``, ``--styles`` or ``--clip`` one of them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save
from torch import nn

from splitpoint.checks import one_of, whole_number
from splitpoint.diffusion.emoji import STYLES, WEIGHTS_LICENCE, Emoji, default_concepts, load_emoji, unseen_concepts
from splitpoint.diffusion.judges import (
    EmojiJudge,
    MiniProcessor,
    PooledCLIP,
    accuracy,
    build_clip,
    clip_vocabulary,
)
from splitpoint.diffusion.mini import load_mini
from splitpoint.diffusion.mini_networks import build_tokenizer, to_pixels
from splitpoint.diffusion.training import Run, fit, training_device
from splitpoint.files import data_path, write_atomically, write_meta

STEPS = {"concepts": 4_500, "styles": 3_500, "clip": 1_250}
STYLE_WIDTHS = (40, 64, 88, 120)  # of the judge of styles
_COMMAND = "splitpoint train-judges"


def distort(pixels: torch.Tensor, generator: torch.Generator, gently: bool = False) -> torch.Tensor:
    """Turn, scale, shift, recolour, blur and roughen pixels (M, 3, 64, 64) from -1 to 1, each image in its own way.

    Args:
        pixels: what to distort.
        generator: of the random numbers, on the pixels' device.
        gently: keep colours and lines nearly as they are, because a style lives in them.
    """
    m = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(m, *shape, generator=generator, device=pixels.device)

    strength = 0.3 if gently else 1.0
    angle, scale = strength * uniform(-0.25, 0.25), 1 + strength * uniform(-0.15, 0.2)
    stretch = 1 + strength * uniform(-0.1, 0.1)
    turn = torch.stack(
        [
            torch.stack([angle.cos() * scale * stretch, -angle.sin() * scale, uniform(-0.12, 0.12)], 1),
            torch.stack([angle.sin() * scale, angle.cos() * scale / stretch, uniform(-0.12, 0.12)], 1),
        ],
        1,
    )
    grid = F.affine_grid(turn, list(pixels.shape), align_corners=False)
    ink = F.grid_sample(1 - pixels, grid, align_corners=False)
    if not gently:
        grey = ink.mean(1, keepdim=True)
        ink = grey + (ink - grey) * uniform(0.6, 1.3, 1, 1, 1)
        ink = ink * uniform(0.8, 1.15, 3, 1, 1)
    soft = F.avg_pool2d(F.pad(ink, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    ink = torch.lerp(ink, soft, strength * uniform(0, 1, 1, 1, 1))
    noise = torch.randn(ink.shape, generator=generator, device=pixels.device)
    return (1 - ink + strength * uniform(0, 0.12, 1, 1, 1) * noise).clamp(-1, 1)


def fit_judge(
    shown: Emoji,
    target: str,
    steps: int,
    *,
    seed: int = 0,
    batch: int = 64,
    widths: Sequence[int] = (24, 48, 96, 160),
    vae: AutoencoderKL | None = None,
    device: str | None = None,
    run: Run = Run(),
) -> EmojiJudge:
    """Train a judge of concepts or of styles on distorted real drawings.

    Args:
        shown: the drawings.
        target: "concepts" or "styles".
        steps: training steps.
        seed: of weights, order and distortions.
        batch: images a step.
        widths: channels of the network.
        vae: an autoencoder; half of the drawings then pass through it first, so that its blur is no clue.
        device: where to train; a GPU if there is one.
        run: checkpoint, budget and bar.

    Returns:
        the judge, in evaluation mode, on the processor.

    Raises:
        ValueError: for another target, or a number out of range.
    """
    one_of("target", target, ("concepts", "styles"))
    whole_number("batch", batch, 1)
    torch.manual_seed(seed)
    device = device or training_device()
    labels, answer = (shown.concepts, shown.concept) if target == "concepts" else (shown.styles, shown.style)
    model, answer = EmojiJudge(labels, widths).to(device), torch.from_numpy(answer).to(device)
    versions = [to_pixels(shown.images).to(device)]
    if vae is not None:
        vae.to(device)
        with torch.no_grad():
            versions.append(torch.cat([vae(part).sample.clamp(-1, 1) for part in versions[0].split(64)]))
    pixels = torch.stack(versions)  # (versions, M, 3, 64, 64)

    def loss(generator: torch.Generator) -> torch.Tensor:
        pick = torch.randint(len(answer), (batch,), generator=generator, device=device)
        which = torch.randint(len(versions), (batch,), generator=generator, device=device)
        seen = distort(pixels[which, pick], generator, gently=target == "styles")
        return F.cross_entropy(model(seen), answer[pick], label_smoothing=0.1)

    weights = dict(model.named_parameters())
    fit(loss, weights, steps, learning_rate=2e-3, weight_decay=0.05, seed=seed, title=f"judge of {target}", run=run)
    return model.cpu().eval()


def fit_clip(
    shown: Emoji,
    steps: int,
    *,
    seed: int = 0,
    batch: int = 96,
    device: str | None = None,
    run: Run = Run(),
) -> PooledCLIP:
    """Train the text-image encoder: the prompt of a distorted drawing must be nearer to it than the other prompts.

    Args:
        shown: the drawings.
        steps: training steps.
        seed: of weights, order and distortions.
        batch: images a step.
        device: where to train; a GPU if there is one.
        run: checkpoint, budget and bar.

    Returns:
        the encoder, in evaluation mode, on the processor.

    Raises:
        ValueError: for a number out of range.
    """
    whole_number("batch", batch, 1)
    torch.manual_seed(seed)
    device = device or training_device()
    vocabulary = clip_vocabulary(shown.concepts)
    model, read = build_clip(vocabulary).to(device), MiniProcessor(build_tokenizer(vocabulary))
    tokens, pixels = read(text=shown.concepts)["input_ids"].to(device), to_pixels(shown.images).to(device)
    owner = torch.from_numpy(shown.concept).to(device)

    def loss(generator: torch.Generator) -> torch.Tensor:
        pick = torch.randint(len(owner), (batch,), generator=generator, device=device)
        image = F.normalize(model.get_image_features(distort(pixels[pick], generator)), dim=1)
        text = F.normalize(model.get_text_features(tokens), dim=1)
        scores = image @ text.T * model.logit_scale.exp().clamp(max=50)  # (batch, concepts)
        there, back = owner[pick].unique(return_inverse=True)
        share = F.one_hot(back).T.float()  # (concepts there, batch)
        to_images = (scores[:, there].T.log_softmax(1) * share / share.sum(1, keepdim=True)).sum(1).mean()
        return F.cross_entropy(scores, owner[pick]) - to_images

    weights = dict(model.named_parameters())
    fit(loss, weights, steps, learning_rate=1e-3, weight_decay=0.05, seed=seed, title="text-image encoder", run=run)
    return model.cpu().eval()


def save_judge(model: nn.Module, name: str, steps: int, seed: int, **more: object) -> Path:
    """Write a judge's weights as float16 safetensors under ``data/models/judges``, with its sidecar."""
    path = data_path("models", "judges", f"{name}.safetensors")
    state = {
        key: value.to(torch.float16).contiguous()
        for key, value in model.state_dict().items()
        if value.is_floating_point()
    }
    write_atomically(path, save(state))
    command = f"{_COMMAND} --{name} --steps {steps} --seed {seed}"
    settings = {"steps": steps}
    write_meta(path, kind="trained", command=command, seed=seed, settings=settings, licence=WEIGHTS_LICENCE, **more)
    return path


def train_concept_judge(steps: int, seed: int, check_steps: int) -> dict:
    """Train and save the judge of concepts; how often it is right on real drawings, and without one vendor on his."""
    known, vae, held_out = default_concepts(), load_mini().vae, "emojione"
    part = load_emoji([style for style in STYLES if style != held_out], known)
    checked = fit_judge(part, "concepts", check_steps, seed=seed, vae=vae)
    shown = load_emoji(STYLES, known)
    model = fit_judge(shown, "concepts", steps, seed=seed, vae=vae)
    found = {
        "unseen_vendor_accuracy": accuracy(checked, load_emoji([held_out], known), "concepts"),
        "real_accuracy": accuracy(model, shown, "concepts"),
    }
    details = {"labels": model.labels, "widths": model.widths, "accuracy": found, "held_out": held_out}
    save_judge(model, "concepts", steps, seed, **details)
    return found


def train_style_judge(steps: int, seed: int) -> dict:
    """Train and save the judge of styles; how often it is right on concepts that it saw and on others."""
    known, held, vae = default_concepts(), unseen_concepts(), load_mini().vae
    train = load_emoji(STYLES, sorted(set(load_emoji(STYLES).concepts) - set(held)))
    model = fit_judge(train, "styles", steps, seed=seed, batch=128, widths=STYLE_WIDTHS, vae=vae)
    found = {
        "unseen_concepts_accuracy": accuracy(model, load_emoji(STYLES, held), "styles"),
        "seen_concepts_accuracy": accuracy(model, load_emoji(STYLES, known), "styles"),
    }
    details = {"labels": model.labels, "widths": model.widths, "accuracy": found, "held_out_concepts": len(held)}
    save_judge(model, "styles", steps, seed, **details)
    return found


def train_clip(steps: int, seed: int) -> dict:
    """Train and save the text-image encoder; how often it finds the prompt of a drawing that it saw."""
    known = default_concepts()
    shown = load_emoji(STYLES, known)
    model = fit_clip(shown, steps, seed=seed)
    with torch.no_grad():
        reader = MiniProcessor(build_tokenizer(clip_vocabulary(known)))
        text = F.normalize(model.get_text_features(reader(text=known)["input_ids"]), dim=1)
        image = F.normalize(model.get_image_features(to_pixels(shown.images)), dim=1)
    found = {"recall_at_1_on_seen_images": float(((image @ text.T).argmax(1).numpy() == shown.concept).mean())}
    save_judge(model, "clip", steps, seed, vocabulary=clip_vocabulary(known), accuracy=found)
    return found


def main() -> None:
    """Train the judges that were asked for, print how well each does on what it never saw, save them."""
    parser = argparse.ArgumentParser(description="Train the judges of the miniature's pictures.")
    for name in STEPS:
        parser.add_argument(f"--{name}", action="store_true", help="train this one; all three if none is named")
    parser.add_argument("--steps", type=int, help=f"training steps; {STEPS} when left out")
    parser.add_argument("--check-steps", type=int, default=1_250, help="for the check on a vendor never seen")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for title, value in (("--steps", given.steps), ("--check-steps", given.check_steps)):
        if value is not None and value < 1:
            parser.error(f"{title} {value} is not a whole number of at least 1")
    named = [name for name in STEPS if getattr(given, name)] or list(STEPS)
    print(f"writing into {data_path('models', 'judges')}")
    for name in named:
        steps = STEPS[name] if given.steps is None else given.steps
        if name == "concepts":
            found = train_concept_judge(steps, given.seed, given.check_steps)
        else:
            found = {"styles": train_style_judge, "clip": train_clip}[name](steps, given.seed)
        print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()
