"""The miniature: a latent diffusion model in Stable Diffusion's own classes, small enough to draw on a laptop.

Four parts, as in Stable Diffusion 1.5: an autoencoder that shrinks 64 x 64 pixels to a latent (16 channels of 8 x 8), a
U-Net that removes noise from latents, a text encoder whose token embeddings steer it, and a noise schedule (the same
scaled-linear one, so that a step means the same noise level). ``diffusers.StableDiffusionPipeline`` reads and writes
the folder; ``mini_networks`` builds the parts, ``mini_training`` trains them, on a GPU in minutes.
"""

import json
import re
import warnings
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from splitpoint.checks import a_path, a_sequence, finite_number, one_or_many, whole_number
from splitpoint.diffusion.emoji import WEIGHTS_LICENCE, emoji_table, nearest
from splitpoint.diffusion.families import family_of
from splitpoint.diffusion.packet import MAX_GUIDANCE, check_prompt
from splitpoint.diffusion.quiet import quiet
from splitpoint.files import data_path, how_to_restore, read_meta, sha256, write_atomically, write_meta

GUIDANCE_SCALE = 3.0
FILLERS = {"a", "an", "the", "of", "with", "and", "in", "on", "picture", "emoji"}
HEAD = "model_index.json"  # the folder's sidecar stands beside it and holds the checksum of every file


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
    folder = data_path("models", "mini") if folder is None else folder
    a_path("folder", folder)
    folder = Path(folder)
    check_folder(folder)
    settings = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
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
    known = {word for name in concepts for word in words_of(name)} | FILLERS
    unknown = list(dict.fromkeys(word for prompt in prompts for word in words_of(prompt) if word not in known))
    if unknown and concepts:
        hints = [f"{word!r} (nearest concepts it knows: {', '.join(_nearby(word, concepts))})" for word in unknown[:5]]
        more = f" and {len(unknown) - 5} more words" if len(unknown) > 5 else ""
        warnings.warn(f"the miniature does not know {', '.join(hints)}{more}", stacklevel=3)
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
    family_of(pipe, "pipe")
    seeds = list(a_sequence("seeds", seeds))
    for seed in seeds:
        whole_number("seeds", seed, 0, 2**63 - 1)
    whole_number("num_steps", num_steps, 1, pipe.scheduler.config.num_train_timesteps)
    finite_number("guidance_scale", guidance_scale, 0, MAX_GUIDANCE)
    whole_number("batch", batch, 1)
    prompts = [prompts] * len(seeds) if isinstance(prompts, str) else one_or_many("prompts", prompts)
    for prompt in prompts:
        check_prompt("prompts", prompt)
    if len(prompts) != len(seeds):
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


def words_of(text: str) -> list[str]:
    """The words of a prompt, in lower case."""
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower())


@lru_cache(maxsize=1)
def _by_keyword() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in emoji_table():
        for keyword in row["keywords"]:
            found.setdefault(keyword, []).append(row["name"])
    return found


# --- the folder ---


def save_mini(
    pipe: StableDiffusionPipeline, folder: Path, concepts: Sequence[str], command: str, seed: int, settings: dict
) -> None:
    """Write a pipeline as float16 safetensors, with the names it knows and one sidecar that holds every checksum."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        halves = {name: deepcopy(getattr(pipe, name)).to(torch.float16) for name in ("unet", "vae", "text_encoder")}
        StableDiffusionPipeline(**{**pipe.components, **halves}, requires_safety_checker=False).save_pretrained(folder)
    for config in folder.glob("*/config.json"):  # diffusers notes where a part was read from: a path of this machine
        entries = json.loads(config.read_text(encoding="utf-8"))
        if entries.pop("_name_or_path", None) is not None:
            write_atomically(config, (json.dumps(entries, indent=2, sort_keys=True) + "\n").encode())
    write_atomically(folder / "concepts.json", json.dumps({"concepts": list(concepts)}, indent=0).encode())
    seal_mini(folder, command=command, seed=seed, settings=settings)


def seal_mini(folder: Path, **entries: object) -> dict:
    """Write the one sidecar of a pipeline's folder, beside ``model_index.json``, and return it.

    Args:
        folder: the finished folder.
        entries: of the sidecar, as for ``write_meta``.
    """
    sums = {name: sha256(folder / name) for name in _parts(folder)}
    return write_meta(folder / HEAD, **{"kind": "trained", "licence": WEIGHTS_LICENCE, **entries}, files=sums)


def _parts(folder: Path) -> list[str]:
    """Every file that a pipeline is read from, relative to its folder: what its parts hold, and its two lists."""
    inside = [path for path in folder.glob("*/*") if path.is_file()]
    files = [*inside, *folder.glob("*.json")]
    return sorted(
        path.relative_to(folder).as_posix()
        for path in files
        if not path.name.startswith(".") and not path.name.endswith(".meta.json")
    )


def check_folder(folder: Path) -> None:
    """Refuse a folder with a file too many, too few, or other than it was: each of them changes the pictures."""
    advice = f"{how_to_restore()}, or train it with `make train-mini`"
    if not (folder / HEAD).exists():
        raise ValueError(f"folder={folder.name!r} holds no {HEAD}; {advice}")
    meta = read_meta(folder / HEAD)
    sums, found = meta.get("files"), _parts(folder)
    if not isinstance(sums, dict) or not sums:
        raise ValueError(f"the sidecar of {HEAD} in folder={folder.name!r} lists no files; {advice}")
    for name in sorted({*sums, *found}):
        if name not in found:
            raise ValueError(f"folder={folder.name!r} holds no {name}; {advice}")
        if name not in sums:
            raise ValueError(f"folder={folder.name!r} holds {name}, which is not the pipeline's; remove it")
        if sha256(folder / name) != sums[name]:
            raise ValueError(
                f"folder={folder.name!r}: {name} does not match the checksum of what was written; {advice}"
            )
