"""Judges of the miniature's images: what is shown, who drew it, and how well an image fits a prompt.

None of them shares a weight with the generator. All were trained on the real drawings, distorted at random; the judge
of concepts never learns whose drawing it sees. ``python -m splitpoint.diffusion.judges`` trains them again.
"""

import argparse
import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from splitpoint.diffusion.emoji import PIXELS, STYLES, WEIGHTS_LICENCE, Emoji, load_emoji
from splitpoint.diffusion.mini import TOKENS, build_tokenizer, default_concepts, draw, load_mini, to_pixels
from splitpoint.diffusion.training import set_rate, time_budget, update
from splitpoint.files import data_path, read_meta, write_atomically, write_meta


class EmojiClassifier(nn.Module):
    """A small convolutional network: images to one score a label, and to the features that the scores are made of.

    Args:
        labels: names of the classes.
        widths: channels at 32, 16, 8 and 4 pixels.
    """

    def __init__(self, labels: Sequence[str], widths: Sequence[int] = (24, 48, 96, 160)):
        super().__init__()
        self.labels, self.widths = tuple(labels), tuple(widths)
        before = widths[0]
        layers = [nn.Conv2d(3, before, 5, stride=2, padding=2), nn.GroupNorm(4, before), nn.SiLU()]
        for width in widths[1:]:
            layers += [
                nn.Conv2d(before, width, 3, stride=2, padding=1),
                nn.GroupNorm(4, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(4, width),
                nn.SiLU(),
            ]
            before = width
        self.body, self.squeeze = nn.Sequential(*layers), nn.Linear(before * 16, before)
        self.head = nn.Linear(before, len(labels))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Deep features (M, widths[-1]) of pixels (M, 3, 64, 64) from -1 to 1."""
        return F.silu(self.squeeze(self.body(pixels).flatten(1)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scores (M, labels) of pixels (M, 3, 64, 64) from -1 to 1."""
        return self.head(self.features(pixels))

    @torch.no_grad()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Probability of each label, (M, labels), for images uint8 (M, 64, 64, 3)."""
        return self(to_pixels(images).to(self.head.weight)).softmax(1).cpu().numpy()

    def classify(self, images: np.ndarray) -> list[str]:
        """Likeliest label of each image, uint8 (M, 64, 64, 3)."""
        return [self.labels[i] for i in self.probabilities(images).argmax(1)]


class PooledCLIP(CLIPModel):
    """A CLIP model whose feature calls return the projected tensor itself, as CLIPScore expects it."""

    def get_image_features(self, pixel_values: torch.Tensor, **more) -> torch.Tensor:
        """Projected image features, (B, projection)."""
        features = super().get_image_features(pixel_values, **more)
        return features if torch.is_tensor(features) else features.pooler_output

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **more
    ) -> torch.Tensor:
        """Projected text features, (B, projection)."""
        features = super().get_text_features(input_ids, attention_mask, **more)
        return features if torch.is_tensor(features) else features.pooler_output


class MiniProcessor:
    """Turns images (0 to 255) and texts into what the text-image encoder reads, called as transformers' CLIPProcessor is."""

    def __init__(self, tokenizer: CLIPTokenizer):
        self.tokenizer = tokenizer

    def __call__(self, text: Sequence[str] | None = None, images: Sequence | None = None, **ignored) -> dict:
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
            return dict(
                self.tokenizer(text, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
            )
        pixels = torch.stack([torch.as_tensor(np.asarray(image)) for image in images]).float() / 127.5 - 1
        if pixels.shape[-1] != PIXELS or pixels.shape[-2] != PIXELS:
            pixels = F.interpolate(pixels, (PIXELS, PIXELS), mode="area")
        return {"pixel_values": pixels}


# --- loading ---


@lru_cache(maxsize=2)
def load_concept_classifier() -> EmojiClassifier:
    """The judge of what an image shows, among all concepts of the miniature, whoever drew it."""
    return _load_classifier("concepts")


@lru_cache(maxsize=2)
def load_style_classifier() -> EmojiClassifier:
    """The judge of who drew an image, among all styles, whatever it shows."""
    return _load_classifier("styles")


@lru_cache(maxsize=1)
def load_mini_clip() -> tuple[PooledCLIP, MiniProcessor]:
    """The small text-image encoder and its processor, as ``CLIPScore(model_name_or_path=load_mini_clip)`` takes them."""
    path = data_path("models", "evaluators", "clip.safetensors")
    meta = read_meta(path)
    model = build_clip(meta["vocabulary"])
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval(), MiniProcessor(build_tokenizer(meta["vocabulary"]))


def _load_classifier(name: str) -> EmojiClassifier:
    path = data_path("models", "evaluators", f"{name}.safetensors")
    meta = read_meta(path)
    model = EmojiClassifier(meta["labels"], meta["widths"])
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return model.eval()


# --- training ---


def distort(pixels: torch.Tensor, generator: torch.Generator, gently: bool = False) -> torch.Tensor:
    """Turn, scale, shift, recolour, blur and roughen pixels (M, 3, 64, 64) from -1 to 1, each image in its own way.

    Args:
        pixels: what to distort.
        generator: of the random numbers.
        gently: keep colours and lines nearly as they are, because a style lives in them.
    """
    m = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(m, *shape, generator=generator)

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
    return (1 - ink + strength * uniform(0, 0.12, 1, 1, 1) * torch.randn(ink.shape, generator=generator)).clamp(-1, 1)


def fit_classifier(
    shown: Emoji,
    target: str,
    minutes: float,
    seed: int = 0,
    batch: int = 64,
    widths: Sequence[int] = (24, 48, 96, 160),
    vae=None,
    progress: bool | None = None,
) -> EmojiClassifier:
    """Train a classifier of concepts or of styles on distorted real drawings.

    Args:
        shown: the drawings.
        target: "concepts" or "styles".
        minutes: time budget.
        seed: seed of weights, order and distortions.
        batch: images a step.
        widths: channels of the network.
        vae: an autoencoder; half of the drawings then pass through it first, so that its blur is no clue.
        progress: show a progress bar.

    Returns:
        the classifier, in evaluation mode.

    Raises:
        ValueError: for another target.
    """
    if target not in ("concepts", "styles"):
        raise ValueError(f"target={target!r} is not one of concepts, styles")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    labels, answer = (shown.concepts, shown.concept) if target == "concepts" else (shown.styles, shown.style)
    model, answer = EmojiClassifier(labels, widths), torch.from_numpy(answer)
    versions = [to_pixels(shown.images)]
    if vae is not None:
        with torch.no_grad():
            versions.append(torch.cat([vae(part).sample.clamp(-1, 1) for part in versions[0].split(64)]))
    pixels = torch.stack(versions)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, 2e-3, weight_decay=0.05)
    for step, part in enumerate(time_budget(minutes, 0.0, progress, f"classifier of {target}")):
        set_rate(optimizer, 2e-3, part, step)
        pick = torch.randint(len(answer), (batch,), generator=generator)
        which = torch.randint(len(versions), (batch,), generator=generator)
        seen = distort(pixels[which, pick], generator, gently=target == "styles")
        update(optimizer, F.cross_entropy(model(seen), answer[pick], label_smoothing=0.1), weights)
    return model.eval()


def build_clip(vocabulary: Sequence[str]) -> PooledCLIP:
    """An untrained text-image encoder of width 96: three layers over 64 patches, one over the words."""
    tokenizer = build_tokenizer(vocabulary)
    tower = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4, "projection_dim": 64}
    text = {
        **tower,
        "num_hidden_layers": 1,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "num_hidden_layers": 3, "image_size": PIXELS, "patch_size": 8}
    return PooledCLIP(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def fit_clip(shown: Emoji, minutes: float, seed: int = 0, batch: int = 96, progress: bool | None = None) -> PooledCLIP:
    """Train the text-image encoder: the prompt of a distorted drawing must be nearer to it than the other prompts.

    Args:
        shown: the drawings.
        minutes: time budget.
        seed: seed of weights, order and distortions.
        batch: images a step.
        progress: show a progress bar.

    Returns:
        the encoder, in evaluation mode.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = clip_vocabulary(shown.concepts)
    model, read = build_clip(vocabulary), MiniProcessor(build_tokenizer(vocabulary))
    tokens, pixels = read(text=shown.concepts)["input_ids"], to_pixels(shown.images)
    owner, weights = torch.from_numpy(shown.concept), list(model.parameters())
    optimizer = torch.optim.AdamW(weights, 1e-3, weight_decay=0.05)
    for step, part in enumerate(time_budget(minutes, 0.0, progress, "text-image encoder")):
        set_rate(optimizer, 1e-3, part, step)
        pick = torch.randint(len(owner), (batch,), generator=generator)
        image = F.normalize(model.get_image_features(distort(pixels[pick], generator)), dim=1)
        text = F.normalize(model.get_text_features(tokens), dim=1)
        scores = image @ text.T * model.logit_scale.exp().clamp(max=50)
        there, back = owner[pick].unique(return_inverse=True)
        loss = F.cross_entropy(scores, owner[pick])
        share = F.one_hot(back).T.float()
        loss = loss - (scores[:, there].T.log_softmax(1) * share / share.sum(1, keepdim=True)).sum(1).mean()
        update(optimizer, loss, weights)
    return model.eval()


def clip_vocabulary(concepts: Sequence[str]) -> list[str]:
    """Words that the text-image encoder reads, in the order that fixes its token numbers."""
    return sorted({word for name in concepts for word in name.split()})


def save_evaluator(model: nn.Module, name: str, minutes: float, seed: int, **more: object) -> Path:
    """Write a judge's weights as float16 safetensors under ``data/models/evaluators`` with its sidecar."""
    path = data_path("models", "evaluators", f"{name}.safetensors")
    state = {
        key: value.to(torch.float16).contiguous()
        for key, value in model.state_dict().items()
        if value.is_floating_point()
    }
    write_atomically(path, save(state))
    write_meta(
        path,
        kind="trained",
        command=f"{_COMMAND} --{name} --minutes {minutes:g}",
        seed=seed,
        settings={"minutes": minutes},
        licence=WEIGHTS_LICENCE,
        **more,
    )
    return path


def accuracy(model: EmojiClassifier, shown: Emoji, target: str) -> float:
    """Share of images whose label the classifier names, among those labels that it knows."""
    truth = shown.prompts if target == "concepts" else [shown.styles[i] for i in shown.style]
    said = model.classify(shown.images)
    return float(np.mean([a == b for a, b in zip(said, truth)]))


GRID_PROMPTS = (
    "birthday cake",
    "dog face",
    "red apple",
    "rocket",
    "guitar",
    "octopus",
    "umbrella",
    "sunflower",
    "hamburger",
    "house",
)


def concept_accuracy(
    pipe, prompts: Sequence[str] = GRID_PROMPTS, seeds: Sequence[int] = range(4), num_steps: int = 50
) -> tuple[float, dict[str, float], np.ndarray]:
    """How often the judge of concepts names, among all concepts, what the prompt asked for.

    Args:
        pipe: a pipeline, with or without a user switched on.
        prompts: names of concepts.
        seeds: of the starting noise; every prompt is drawn with each.
        num_steps: denoising steps.

    Returns:
        the share over all images, the share of each prompt, and the images, uint8 (prompts, seeds, 64, 64, 3).
    """
    asked = [prompt for prompt in prompts for _ in seeds]
    images = draw(pipe, asked, list(seeds) * len(prompts), num_steps)
    right = np.equal(load_concept_classifier().classify(images), asked).reshape(len(prompts), -1)
    each = dict(zip(prompts, right.mean(1).tolist()))
    return float(right.mean()), each, images.reshape(len(prompts), -1, *images.shape[1:])


def _report(num_steps: int) -> None:
    pipe = load_mini()
    share, each, images = concept_accuracy(pipe, num_steps=num_steps)
    every, _, _ = concept_accuracy(pipe, pipe.concepts, [0], num_steps)
    report = {"grid_accuracy": share, "each": each, "all_concepts_accuracy": every, "steps": num_steps}
    grid = images.transpose(1, 2, 0, 3, 4).reshape(images.shape[1] * PIXELS, -1, 3)
    file = io.BytesIO()
    Image.fromarray(grid).save(file, "PNG", optimize=True)
    write_atomically(data_path("models", "mini", "samples.png"), file.getvalue())
    write_meta(
        data_path("models", "mini", "samples.png"),
        kind="measured",
        command=f"{_COMMAND} --report",
        seed=0,
        licence=WEIGHTS_LICENCE,
        settings={"prompts": list(GRID_PROMPTS), "seeds": list(range(len(images[0]))), **report},
    )
    print(json.dumps(report))


_COMMAND = "python -m splitpoint.diffusion.judges"


def main() -> None:
    """Train the judges that were asked for, print how well each does on what it never saw, save them."""
    parser = argparse.ArgumentParser(description="Train the judges of the miniature's images.")
    for name in ("concepts", "styles", "clip"):
        parser.add_argument(f"--{name}", action="store_true", help="train this one; all three if none is named")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--check-minutes", type=float, default=3.0, help="for the unseen-vendor check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="judge the miniature and write samples.png")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of the report")
    given = parser.parse_args()
    if given.report:
        _report(given.steps)
    elif not (given.concepts or given.styles or given.clip):
        given.concepts = given.styles = given.clip = True
    if not (given.concepts or given.styles or given.clip):
        return
    known = default_concepts()
    shown = load_emoji(STYLES, known)
    vae = load_mini().vae
    report = {}
    if given.concepts:
        held_out = "emojione"
        part = load_emoji([style for style in STYLES if style != held_out], known)
        checked = fit_classifier(part, "concepts", given.check_minutes, given.seed, vae=vae)
        report["unseen_vendor_accuracy"] = accuracy(checked, load_emoji([held_out], known), "concepts")
        model = fit_classifier(shown, "concepts", given.minutes, given.seed, vae=vae)
        report["real_accuracy"] = accuracy(model, shown, "concepts")
        save_evaluator(
            model,
            "concepts",
            given.minutes,
            given.seed,
            labels=model.labels,
            widths=model.widths,
            accuracy=report,
            held_out=held_out,
        )
        print(json.dumps({"concepts": report}))
    if given.styles:
        everything = load_emoji(STYLES)
        names = np.random.default_rng(given.seed).permutation(everything.concepts)
        held = sorted(set(names[: len(names) // 6]) - set(known))
        train = load_emoji(STYLES, sorted(set(names) - set(held)))
        model = fit_classifier(train, "styles", given.minutes, given.seed, widths=(32, 48, 72, 96), vae=vae)
        report = {
            "unseen_concepts_accuracy": accuracy(model, load_emoji(STYLES, held), "styles"),
            "seen_concepts_accuracy": accuracy(model, shown, "styles"),
        }
        save_evaluator(
            model,
            "styles",
            given.minutes,
            given.seed,
            labels=model.labels,
            widths=model.widths,
            accuracy=report,
            held_out_concepts=len(held),
        )
        print(json.dumps({"styles": report}))
    if given.clip:
        model = fit_clip(shown, given.minutes, given.seed)
        with torch.no_grad():
            reader = MiniProcessor(build_tokenizer(clip_vocabulary(known)))
            text = F.normalize(model.get_text_features(reader(text=known)["input_ids"]), dim=1)
            image = F.normalize(model.get_image_features(to_pixels(shown.images)), dim=1)
        right = float(((image @ text.T).argmax(1).numpy() == shown.concept).mean())
        save_evaluator(
            model,
            "clip",
            given.minutes,
            given.seed,
            vocabulary=clip_vocabulary(known),
            accuracy={"recall_at_1_on_seen_images": right},
        )
        print(json.dumps({"clip": {"recall_at_1_on_seen_images": right}}))


if __name__ == "__main__":
    main()
