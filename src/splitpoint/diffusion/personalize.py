"""Personal models: one small LoRA a user, on top of the model that everyone shares.

A user is a vendor whose drawings the shared model is tuned to, or a reader with pictures of their own:
``personalize(images, prompts, out="my_style")``. ``splitpoint personalize --style noto`` trains a
vendor's again.
"""

import argparse
import csv
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from splitpoint.checks import finite_number, one_of, whole_number
from splitpoint.diffusion.emoji import (
    PIXELS,
    SOURCES,
    STYLES,
    WEIGHTS_LICENCE,
    default_concepts,
    load_emoji,
)
from splitpoint.diffusion.mini import draw, load_mini, warn_unknown
from splitpoint.diffusion.mini_networks import encode_images, token_ids
from splitpoint.diffusion.mini_training import other_emoji
from splitpoint.diffusion.training import (
    Run,
    denoising_loss,
    drawing_device,
    fit,
    training_device,
    writable_folder,
)
from splitpoint.diffusion.users import ADAPTER_FILE, adapter_name, add_adapter, mini_users
from splitpoint.files import data_path, read_meta, write_meta, write_rows

RANK = 12
STEPS = 900
BATCH = 48
OTHER_SHARE = 0.5  # of a vendor's other drawings: what carries a style over to concepts that were never shown
MOST_PIXELS = 1024
# Which layers get a LoRA: attention alone is too weak to carry a style.
TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "proj_in",
    "proj_out",
    "conv1",
    "conv2",
    "conv_in",
    "conv_out",
    "conv_shortcut",
]


def user_path(style: str) -> Path:
    """The folder of a committed user's LoRA.

    Raises:
        ValueError: if there is none of that name, with the names there are.
    """
    if style not in mini_users():
        raise ValueError(f"style={style!r} has no personal model; there are: {', '.join(mini_users()) or 'none'}")
    return data_path("models", "users", style)


def attach_user(pipe: StableDiffusionPipeline, user: str | Path) -> str:
    """Load a personal model into a pipeline, and switch it on.

    Args:
        pipe: the shared model, changed in place; ``pipe.disable_lora()`` switches the user off again.
        user: the name of a committed user, or a folder that ``personalize`` wrote.

    Returns:
        the adapter's name.

    Raises:
        ValueError: for an unknown user, damaged weights, or weights that were trained for another model.
    """
    folder = Path(user) if Path(user).is_dir() else user_path(str(user))
    read_meta(folder / ADAPTER_FILE)
    name = add_adapter(pipe, folder, folder.name)
    pipe.enable_lora()
    pipe.set_adapters(name)
    return name


def personalize(
    images: Sequence,
    prompts: Sequence[str],
    pipe: StableDiffusionPipeline | None = None,
    out: Path | str | None = None,
    *,
    steps: int = STEPS,
    rank: int = RANK,
    learning_rate: float = 1.5e-3,
    batch: int = BATCH,
    seed: int = 0,
    name: str = "mine",
    run: Run = Run(),
    meta: Mapping[str, object] | None = None,
) -> StableDiffusionPipeline:
    """Tune a LoRA to someone's pictures, and leave it switched on in the pipeline.

    Args:
        images: pictures of any size, PIL or uint8 arrays (H, W, 3); transparent ones are put on white.
        prompts: what each shows, in words that the shared model knows.
        pipe: the shared model; the miniature when left out, on a GPU if there is one.
        out: folder to write; its name becomes the adapter's. Nothing is written when left out.
        steps: training steps.
        rank: of the LoRA; its file grows in proportion.
        learning_rate: its peak.
        batch: images a step, drawn with replacement.
        seed: seed of weights, order and noise.
        name: of the adapter, where ``out`` is left out.
        run: checkpoint, budget and bar.
        meta: entries for the sidecar, for instance the licence of the pictures.

    Returns:
        the pipeline with the new user switched on.

    Raises:
        ValueError: if the two lists differ in length or are empty, a prompt is empty, a number is out of range, or
            ``out`` cannot be written; all of it before any work.
    """
    images, prompts = list(images), list(prompts)
    _check_request(images, prompts, steps, rank, learning_rate, batch)
    pictures = np.stack([_picture(image) for image in images])
    if out is not None:
        writable_folder("out", Path(out))
    pipe = load_mini(device=training_device()) if pipe is None else pipe
    warn_unknown(prompts, getattr(pipe, "concepts", ()))
    user = Path(out).name if out is not None else name
    name = adapter_name(user)
    torch.manual_seed(seed)
    weights = _new_adapter(pipe, name, rank)
    unet, device = pipe.unet, pipe.unet.device
    here = drawing_device(device)
    mean, std = (value.to(here) * pipe.vae.config.scaling_factor for value in encode_images(pipe.vae, pictures))
    with torch.no_grad():
        contexts = pipe.text_encoder(token_ids(pipe.tokenizer, [*prompts, ""]).to(device)).last_hidden_state
    unet.to(memory_format=torch.channels_last).train()

    def loss(generator: torch.Generator) -> torch.Tensor:
        pick = torch.randint(len(mean), (batch,), generator=generator, device=here)
        latents = mean[pick] + std[pick] * torch.randn(mean[pick].shape, generator=generator, device=here)
        which = torch.where(torch.rand(batch, generator=generator, device=here) < 0.1, len(prompts), pick)
        return denoising_loss(unet, pipe.scheduler, latents, contexts[which], generator)

    title = f"personal model {user}"
    losses = fit(loss, weights, steps, learning_rate=learning_rate, weight_decay=1e-2, seed=seed, title=title, run=run)
    unet.eval().requires_grad_(False)
    if out is not None:
        settings = {"rank": rank, "learning_rate": learning_rate, "batch": batch, "images": len(images)}
        settings |= {"steps": len(losses), "final_loss": float(np.mean(losses[-50:]))}
        _save(pipe, name, Path(out), seed, settings, meta or {})
    return pipe


def _check_request(images: list, prompts: list, steps: int, rank: int, learning_rate: float, batch: int) -> None:
    if not images or len(images) != len(prompts):
        raise ValueError(
            f"images has {len(images)} entries and prompts has {len(prompts)}; valid: as many of both, at least 1"
        )
    if any(not isinstance(prompt, str) or not prompt.strip() for prompt in prompts):
        raise ValueError(f"prompts={prompts!r} holds an empty prompt; valid: a text for every image")
    whole_number("steps", steps, 1)
    whole_number("rank", rank, 1, 64)
    whole_number("batch", batch, 1, 4096)
    finite_number("learning_rate", learning_rate, 1e-6, 1)


def _new_adapter(pipe: StableDiffusionPipeline, name: str, rank: int) -> dict[str, torch.nn.Parameter]:
    """Add an untrained LoRA, switch it on, and return its weights; all others are frozen."""
    unet = pipe.unet
    for part in (unet, pipe.text_encoder, pipe.vae):
        part.requires_grad_(False)
    if name in getattr(unet, "peft_config", {}):
        pipe.delete_adapters(name)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS), name)
    pipe.enable_lora()
    unet.set_adapter(name)
    return {key: weight for key, weight in unet.named_parameters() if weight.requires_grad}


def split_concepts(concepts: Sequence[str], share: float = 0.15, seed: int = 0) -> tuple[list[str], list[str]]:
    """Which concepts a vendor's personal model is trained on, and which it never sees (two lists)."""
    order = np.random.default_rng(seed).permutation(len(concepts))
    held = set(order[: round(share * len(concepts))].tolist())
    return [c for i, c in enumerate(concepts) if i not in held], [c for i, c in enumerate(concepts) if i in held]


def vendor_pictures(style: str, concepts: Sequence[str], other_share: float) -> tuple[list[np.ndarray], list[str]]:
    """A vendor's drawings of the given concepts, and, as a share of all, of what the miniature does not know.

    Args:
        style: one of ``STYLES``.
        concepts: names; each drawing is repeated so that the others make up their share.
        other_share: from 0 to below 1.

    Returns:
        images, uint8 (64, 64, 3), and what each shows; never one of the miniature's concepts that is not given.
    """
    own = load_emoji([style], concepts)
    if not other_share:
        return list(own.images), own.prompts
    others = other_emoji([style], default_concepts())
    times = max(1, round(len(others) * (1 - other_share) / other_share / len(own)))
    return [*own.images] * times + [*others.images], own.prompts * times + others.prompts


def train_user(
    style: str,
    *,
    steps: int = STEPS,
    seed: int = 0,
    out: Path | None = None,
    other_share: float = OTHER_SHARE,
    run: Run = Run(),
) -> Path:
    """Train the personal model of one vendor on most of the miniature's concepts, on a GPU if there is one; save it.

    Args:
        style: one of ``STYLES``.
        steps: training steps.
        seed: seed of weights, order and noise; which concepts are held out never changes.
        out: folder; ``data/models/users/<style>`` when left out.
        other_share: share of the vendor's drawings of things that the shared model does not know, for the style alone.
        run: checkpoint, budget and bar.

    Returns:
        the folder.

    Raises:
        ValueError: for an unknown style, a number out of range, or a folder that cannot be written.
    """
    one_of("style", style, STYLES)
    whole_number("steps", steps, 1)
    finite_number("other_share", other_share, 0, 0.9)
    pipe = load_mini(device=training_device())
    kept, held = split_concepts(pipe.concepts)
    images, prompts = vendor_pictures(style, kept, other_share)
    out = data_path("models", "users", style) if out is None else Path(out)
    command = f"splitpoint personalize --style {style} --steps {steps} --seed {seed}"
    meta = {
        "command": command,
        "held_out_concepts": held,
        "other_share": other_share,
        "licence": WEIGHTS_LICENCE,
        "trained_on": {
            "source": f"npm {SOURCES[style][0]}@{SOURCES[style][1]}",
            "licence": SOURCES[style][3],
            "licence_url": SOURCES[style][4],
        },
    }
    with warnings.catch_warnings():  # the other drawings show what the shared model was never told of
        warnings.filterwarnings("ignore", message="the miniature does not know")
        personalize(images, prompts, pipe, out, steps=steps, seed=seed, run=run, meta=meta)
    return out


def style_accuracy(pipe: StableDiffusionPipeline, style: str, prompts: Sequence[str], num_steps: int = 50) -> float:
    """Share of a pipeline's images that the judge of styles gives to ``style``, among all six.

    Args:
        pipe: a pipeline, with or without a user switched on.
        style: whose drawings they should look like.
        prompts: one image each; the first has seed 0, each next prompt the next seed.
        num_steps: denoising steps.
    """
    from splitpoint.diffusion.judges import load_style_judge

    images = draw(pipe, prompts, range(len(prompts)), num_steps)
    return float(np.mean([said == style for said in load_style_judge().classify(images)]))


def _picture(image) -> np.ndarray:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"images holds a {type(image).__name__}; valid: PIL images or uint8 arrays (H, W, 3)")
    image = image.convert("RGBA")
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))  # or the square around a long strip would take gigabytes
    page = Image.new("RGBA", (max(image.size),) * 2, "white")
    page.alpha_composite(image, ((page.width - image.width) // 2, (page.height - image.height) // 2))
    return np.asarray(page.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.LANCZOS))


def _save(pipe: StableDiffusionPipeline, name: str, folder: Path, seed: int, settings: dict, meta: Mapping) -> None:
    state = get_peft_model_state_dict(pipe.unet, adapter_name=name)  # one naming for all layers, or some would be lost
    folder.mkdir(parents=True, exist_ok=True)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers={key: value.to(torch.float16).contiguous() for key, value in state.items()},
        weight_name=ADAPTER_FILE,
    )
    entries = {"command": "splitpoint.diffusion.personalize.personalize(images, prompts, out=...)", **meta}
    write_meta(folder / ADAPTER_FILE, **{"kind": "trained", "seed": seed, "settings": settings, **entries})


def main() -> None:
    """Train vendors' personal models; print the style accuracy of each on concepts it was shown and on others."""
    parser = argparse.ArgumentParser(description="Train the personal models of vendors.")
    parser.add_argument("--style", nargs="+", choices=STYLES, default=["noto", "twemoji", "openmoji", "fluent"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-report", action="store_true", help="train nothing")
    given = parser.parse_args()
    rows = []
    for style in given.style:
        if not given.only_report:
            train_user(style, steps=given.steps, seed=given.seed)
        pipe = load_mini()
        kept, held = split_concepts(pipe.concepts)
        sets = {"trained": kept[:: math.ceil(len(kept) / len(held))], "held_out": held}
        for user in ("shared model", style):
            if user == style:
                attach_user(pipe, style)
            for concepts, prompts in sets.items():
                share = style_accuracy(pipe, style, prompts)
                rows.append(
                    {"style": style, "model": user, "concepts": concepts, "images": len(prompts), "accuracy": share}
                )
                print(json.dumps(rows[-1]), flush=True)
    path = data_path("models", "users", "style_accuracy.csv")
    if path.exists():  # what was measured of other users stays
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["style"] not in given.style] + rows
    write_rows(path, rows)
    write_meta(
        path,
        kind="measured",
        command="splitpoint personalize --only-report",
        seed=0,
        licence="MIT",
        settings={"steps": 50, "judge": "judges/styles.safetensors, among all six styles"},
    )


if __name__ == "__main__":
    main()
