"""What an edge must store and compute: a personal model for each user, or one cluster-wide model for all."""

from collections.abc import Sequence
from copy import deepcopy

import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from splitpoint.diffusion.mini import load_mini
from splitpoint.diffusion.networks import SD15, architectures
from splitpoint.diffusion.profile import DenoisingStep, measure
from splitpoint.files import data_path

#: published configuration of stable-diffusion-v1-5 (vae/config.json, text_encoder/config.json)
_VAE = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    latent_channels=4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
)
_TEXT = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    vocab_size=49408,
    max_position_embeddings=77,
)
TOGETHER, ONE_BY_ONE = "one model, one batch", "a model each, one by one"
_ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


def stable_diffusion_parameters(lora_rank: int = 4) -> dict[str, int]:
    """Parameters of Stable Diffusion 1.5, counted on its published configuration without any weights.

    Args:
        lora_rank: of an adapter on the U-Net's attention, the usual place for a personal LoRA.

    Returns:
        ``{"unet", "vae", "text_encoder", "lora"}``.
    """
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**SD15),
            "vae": AutoencoderKL(**_VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**_TEXT)),
        }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    adapted = [module for name, module in parts["unet"].named_modules() if name.endswith(_ADAPTED)]
    return counts | {"lora": sum(lora_rank * (module.in_features + module.out_features) for module in adapted)}


def folder_bytes(*parts: str) -> int:
    """Bytes of the weights (safetensors) in a folder under ``data/`` and below it."""
    return sum(path.stat().st_size for path in data_path(*parts).rglob("*.safetensors"))


def storage(users: Sequence[int], parts: dict[str, float], adapter: float) -> pd.DataFrame:
    """Bytes that the edge stores, against the number of users it must be ready for.

    Args:
        users: numbers of users.
        parts: bytes of ``unet``, ``vae`` and ``text_encoder``.
        adapter: bytes of one personal adapter.

    Returns:
        Columns ``users, arrangement, bytes``: a whole personal pipeline each; a personal U-Net each beside one shared
        autoencoder and text encoder; one shared model and an adapter each; one cluster-wide model.
    """
    whole, unet = sum(parts.values()), parts["unet"]
    rows = [
        dict(users=n, arrangement=name, bytes=size)
        for n in users
        for name, size in (
            ("a whole personal pipeline each", n * whole),
            ("a personal U-Net each", n * unet + whole - unet),
            ("one model and a LoRA each", whole + n * adapter),
            ("one cluster-wide model", whole),
        )
    ]
    return pd.DataFrame(rows)


def measure_mini_steps(batch_sizes: Sequence[int] = (1, 2, 4, 8), repeats: int = 15) -> pd.DataFrame:
    """Seconds of one denoising step of several requests on the miniature, in two arrangements, on this machine's CPU.

    Args:
        batch_sizes: requests at a time.
        repeats: timed steps of each, all arrangements interleaved.

    Returns:
        Columns ``requests, arrangement, step_s``: one model on the whole batch, or a model of its own for each
        request (copies with weights of their own in memory), one after the other.
    """
    unet, architecture = load_mini().unet, architectures()["mini"]
    shared = DenoisingStep(unet, architecture)
    own = [DenoisingStep(deepcopy(unet), architecture) for _ in range(max(batch_sizes))]

    def prepare(setting):
        batch, arrangement = setting
        if arrangement == TOGETHER:
            return shared.prepare(batch)
        runs = [step.prepare(1) for step in own[:batch]]
        return lambda: [run() for run in runs]

    settings = [(batch, arrangement) for batch in batch_sizes for arrangement in (TOGETHER, ONE_BY_ONE)]
    rows = measure(prepare, settings, repeats)
    return pd.DataFrame(
        [dict(requests=row["batch_size"][0], arrangement=row["batch_size"][1], step_s=row["step_s"]) for row in rows]
    )
