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

from splitpoint.checks import a_sequence, finite_number, one_of, whole_number
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
UNPROMPTED_SHARE = 0.1  # of a batch is learned with no prompt
EVERYBODYS_SHARE = 0.3  # instead, where that is everybody's pictures, so that guidance leads away from them
STRENGTH = 1.3  # of a vendor's model: exaggerated a little, which carries its style further
OTHER_SHARE = 0.6  # of a vendor's other drawings: what carries a style over to concepts that were never shown
HELD_OUT_PICTURES = 4  # of each held-out concept in the report: there are few of them
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
    unprompted: Sequence | None = None,
    steps: int = STEPS,
    rank: int = RANK,
    learning_rate: float = 1.5e-3,
    batch: int = BATCH,
    strength: float = 1.0,
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
        unprompted: other people's pictures, to learn where no prompt is given; ``images`` when left out. Guidance leads
            away from what is drawn without a prompt, and so from their styles to one's own.
        steps: training steps.
        rank: of the LoRA; its file grows in proportion.
        learning_rate: its peak.
        batch: images a step, drawn with replacement.
        strength: what the trained change is multiplied by; more than 1 exaggerates a style.
        seed: seed of weights, order and noise.
        name: of the adapter, where ``out`` is left out.
        run: checkpoint, budget and bar.
        meta: entries for the sidecar, for instance the licence of the pictures.

    Returns:
        the pipeline with the new user switched on.

    Raises:
        ValueError: if the two lists differ in length or one is empty, a prompt is empty, a number is out of range, or
            ``out`` cannot be written; all of it before any work.
    """
    images, prompts = list(images), list(prompts)
    _check_request(images, prompts, steps, rank, learning_rate, batch, strength)
    pictures = [_picture("images", image) for image in images]
    first, share = 0, UNPROMPTED_SHARE  # of what is learned without a prompt
    if unprompted is not None:
        first, share = len(images), EVERYBODYS_SHARE
        pictures += [_picture("unprompted", image) for image in a_sequence("unprompted", unprompted)]
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
    mean, std = (
        value.to(here) * pipe.vae.config.scaling_factor for value in encode_images(pipe.vae, np.stack(pictures))
    )
    with torch.no_grad():
        contexts = pipe.text_encoder(token_ids(pipe.tokenizer, [*prompts, ""]).to(device)).last_hidden_state
    unet.to(memory_format=torch.channels_last).train()

    def loss(generator: torch.Generator) -> torch.Tensor:
        pick = torch.randint(len(images), (batch,), generator=generator, device=here)
        other = torch.randint(first, len(mean), (batch,), generator=generator, device=here)
        unsaid = torch.rand(batch, generator=generator, device=here) < share
        context = contexts[torch.where(unsaid, len(prompts), pick)]
        pick = torch.where(unsaid, other, pick)
        latents = mean[pick] + std[pick] * torch.randn(mean[pick].shape, generator=generator, device=here)
        return denoising_loss(unet, pipe.scheduler, latents, context, generator)

    title = f"personal model {user}"
    losses = fit(loss, weights, steps, learning_rate=learning_rate, weight_decay=1e-2, seed=seed, title=title, run=run)
    unet.eval().requires_grad_(False)
    for key, weight in weights.items():
        if "lora_B" in key:
            weight.mul_(strength)
    if out is not None:
        settings = {"rank": rank, "learning_rate": learning_rate, "batch": batch, "images": len(images)}
        settings |= {"unprompted_images": len(pictures) - first, "unprompted_share": share, "strength": strength}
        settings |= {"steps": len(losses), "final_loss": float(np.mean(losses[-50:]))}
        _save(pipe, name, Path(out), seed, settings, meta or {})
    return pipe


def _check_request(
    images: list, prompts: list, steps: int, rank: int, learning_rate: float, batch: int, strength: float
) -> None:
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
    finite_number("strength", strength, 0, 4)


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
    everybody_else = load_emoji([other for other in STYLES if other != style], kept).images
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
        personalize(
            images,
            prompts,
            pipe,
            out,
            unprompted=everybody_else,
            steps=steps,
            strength=STRENGTH,
            seed=seed,
            run=run,
            meta=meta,
        )
    return out


def styles_named(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], pictures: int = 1, num_steps: int = 50
) -> np.ndarray:
    """Whose drawings the judge of styles takes a pipeline's images for, among all six: names, (prompts * pictures,).

    Args:
        pipe: a pipeline, with or without a user switched on.
        prompts: what to draw.
        pictures: of each prompt; the first of all has seed 0, each next one the next seed.
        num_steps: denoising steps.
    """
    from splitpoint.diffusion.judges import load_style_judge

    whole_number("pictures", pictures, 1)
    every = [prompt for prompt in prompts for _ in range(pictures)]
    return np.array(load_style_judge().classify(draw(pipe, every, range(len(every)), num_steps)))


def style_accuracy(pipe: StableDiffusionPipeline, style: str, prompts: Sequence[str], num_steps: int = 50) -> float:
    """Share of a pipeline's images that the judge of styles gives to ``style``; the rest as for ``styles_named``."""
    return float(np.mean(styles_named(pipe, prompts, num_steps=num_steps) == style))


def _picture(name: str, image) -> np.ndarray:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"{name} holds a {type(image).__name__}; valid: PIL images or uint8 arrays (H, W, 3)")
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
    for style in () if given.only_report else given.style:
        train_user(style, steps=given.steps, seed=given.seed)
    pipe = load_mini()
    kept, held = split_concepts(pipe.concepts)
    sets = {"trained": (kept[:: math.ceil(len(kept) / len(held))], 1), "held_out": (held, HELD_OUT_PICTURES)}
    rows, shared = [], {concepts: styles_named(pipe, *drawn) for concepts, drawn in sets.items()}
    for style in given.style:
        attach_user(pipe, style)
        own = {concepts: styles_named(pipe, *drawn) for concepts, drawn in sets.items()}
        for model, named in (("shared model", shared), (style, own)):
            for concepts, said in named.items():
                accuracy = float(np.mean(said == style))
                row = {"style": style, "model": model, "concepts": concepts, "images": len(said), "accuracy": accuracy}
                rows.append(row)
                print(json.dumps(row), flush=True)
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
        settings={
            "steps": 50,
            "pictures_of_a_held_out_concept": HELD_OUT_PICTURES,
            "judge": "judges/styles.safetensors, among all six styles",
        },
    )


if __name__ == "__main__":
    main()
