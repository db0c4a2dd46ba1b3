"""Judges of pictures: what is shown, who drew it, how well a picture fits a prompt, how far two of them are apart.

None of the miniature's judges shares a weight with the generator. All were trained on the real drawings, distorted at
random; the judge of concepts never learns whose drawing it sees. ``judges_training`` trains them again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer

from splitpoint.diffusion.emoji import PIXELS, Emoji
from splitpoint.diffusion.mini import draw
from splitpoint.diffusion.mini_networks import TOKENS, build_tokenizer, to_pixels
from splitpoint.files import data_path, read_meta

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class EmojiJudge(nn.Module):
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
    """Turns images (0 to 255) and texts into what the encoder reads, called as transformers' CLIPProcessor is."""

    def __init__(self, tokenizer: CLIPTokenizer):
        self.tokenizer = tokenizer

    def __call__(self, text: Sequence[str] | None = None, images: Sequence | None = None, **ignored) -> dict:
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
            return dict(
                self.tokenizer(text, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
            )
        pixels = torch.stack([torch.as_tensor(np.asarray(image)) for image in images or ()]).float() / 127.5 - 1
        if pixels.shape[-1] != PIXELS or pixels.shape[-2] != PIXELS:
            pixels = F.interpolate(pixels, (PIXELS, PIXELS), mode="area")
        return {"pixel_values": pixels}


# --- all that judge one kind of picture ---


@dataclass(frozen=True)
class Judges:
    """The networks that judge pictures; none of them is the generator's.

    Attributes:
        name: what they are, for provenance.
        clip: as ``torchmetrics`` takes it, a callable that returns (model, processor).
        distance: pictures (B, 3, H, W) in [0, 1], twice -> (B,).
        style: pictures -> one style name each, or None where there is no such network.
    """

    name: str
    clip: Callable[[], tuple]
    distance: Distance
    style: Callable[[torch.Tensor], list[str]] | None = None


def stable_diffusion_judges(
    clip: str | Path = "openai/clip-vit-base-patch32", network: str = "alex", pixels: int = 256
) -> Judges:
    """CLIP ViT-B/32 and LPIPS, as in the released index; needs torchvision and, once, a connection.

    Args:
        clip: folder or hub name of the CLIP model.
        network: LPIPS backbone, "alex" in the released index.
        pixels: edge length to which pictures are resized before LPIPS.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    lpips = LearnedPerceptualImagePatchSimilarity(net_type=network, reduction="none", normalize=True)

    def distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        one, other = (
            torch.nn.functional.interpolate(x, (pixels, pixels), mode="bilinear", antialias=True).clamp(0, 1)
            for x in (one, other)
        )
        return lpips(one, other)

    loaded = load_clip(clip)
    return Judges(f"CLIP {Path(clip).name}, LPIPS {network}", lambda: loaded, distance)


def mini_judges() -> Judges:
    """The miniature's judges: its text-image encoder, feature maps of the judge of concepts, the judge of styles."""
    concepts, styles = load_concept_judge(), load_style_judge()

    def feature_maps(pictures: torch.Tensor) -> list[torch.Tensor]:
        maps, value = [], pictures * 2 - 1
        for layer in concepts.body:
            value = layer(value)
            maps.append(value)
        return maps[2::6]  # at 32, 16, 8 and 4 pixels, the last of each resolution

    def style(pictures: torch.Tensor) -> list[str]:
        return styles.classify((pictures * 255).round().byte().permute(0, 2, 3, 1).numpy())

    return Judges(
        "the project's text-image encoder, judge of concepts, judge of styles",
        load_mini_clip,
        deep_feature_distance(feature_maps),
        style,
    )


def deep_feature_distance(feature_maps: Callable[[torch.Tensor], Sequence[torch.Tensor]]) -> Distance:
    """A distance between pictures from a network's feature maps: like LPIPS, without its learned weights.

    Args:
        feature_maps: pictures (B, 3, H, W) in [0, 1] -> maps (B, channels, h, w), one a layer.

    Returns:
        A function of two picture batches: mean over layers and places of the squared difference between the maps,
        each place's channels scaled to length 1.
    """

    @torch.no_grad()
    def distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        pairs = zip(feature_maps(one), feature_maps(other), strict=True)
        layers = [
            (torch.nn.functional.normalize(a, dim=1) - torch.nn.functional.normalize(b, dim=1))
            .square()
            .sum(1)
            .flatten(1)
            .mean(1)
            for a, b in pairs
        ]
        return torch.stack(layers).mean(0)

    return distance


# --- loading ---


def load_clip(path: str | Path = "openai/clip-vit-base-patch32") -> tuple[PooledCLIP, CLIPProcessor]:
    """A CLIP model and its processor from a folder or the hub; ViT-B/32 is what the released index uses."""
    return PooledCLIP.from_pretrained(path).eval(), CLIPProcessor.from_pretrained(path)


@lru_cache(maxsize=2)
def load_concept_judge() -> EmojiJudge:
    """The judge of what an image shows, among all concepts of the miniature, whoever drew it."""
    return _load_judge("concepts")


@lru_cache(maxsize=2)
def load_style_judge() -> EmojiJudge:
    """The judge of who drew an image, among all styles, whatever it shows."""
    return _load_judge("styles")


@lru_cache(maxsize=1)
def load_mini_clip() -> tuple[PooledCLIP, MiniProcessor]:
    """The small text-image encoder and its processor, as torchmetrics' ``CLIPScore`` takes them."""
    path = data_path("models", "judges", "clip.safetensors")
    meta = read_meta(path)
    model = build_clip(meta["vocabulary"])
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval(), MiniProcessor(build_tokenizer(meta["vocabulary"]))


def _load_judge(name: str) -> EmojiJudge:
    path = data_path("models", "judges", f"{name}.safetensors")
    meta = read_meta(path)
    model = EmojiJudge(meta["labels"], meta["widths"])
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
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


def clip_vocabulary(concepts: Sequence[str]) -> list[str]:
    """Words that the text-image encoder reads, in the order that fixes its token numbers."""
    return sorted({word for name in concepts for word in name.split()})


def accuracy(model: EmojiJudge, shown: Emoji, target: str) -> float:
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
    right = np.equal(load_concept_judge().classify(images), asked).reshape(len(prompts), -1)
    each = dict(zip(prompts, right.mean(1).tolist()))
    return float(right.mean()), each, images.reshape(len(prompts), -1, *images.shape[1:])
