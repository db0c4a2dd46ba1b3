"""The networks that can be profiled: by their published configurations, with random weights, and without a pipeline.

How long a step takes does not depend on the weights' values (notebook 01 shows it on the miniature).
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace as Stub

import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from splitpoint.diffusion.families import Family, PixArt, StableDiffusion, StableDiffusionXL
from splitpoint.files import data_path

_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # of all these models


@dataclass(frozen=True, eq=False)
class Architecture:
    """A denoising network by its published configuration.

    Args:
        model_class: diffusers class.
        config: its arguments.
        channels: of the latent.
        size: height and width of the latent, in latent pixels.
        context: tokens and width of the text embedding.
        source: where the configuration is published.
    """

    model_class: type
    config: dict
    channels: int
    size: int
    context: tuple[int, int]
    source: str

    @property
    def family(self) -> type[Family]:
        """How the network is called, as in a whole pipeline of its kind."""
        if self.model_class is PixArtTransformer2DModel:
            return PixArt
        return StableDiffusionXL if self.config.get("addition_embed_type") == "text_time" else StableDiffusion


SD15 = dict(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    cross_attention_dim=768,
    attention_head_dim=8,
)
SDXL = dict(
    sample_size=128,
    in_channels=4,
    out_channels=4,
    block_out_channels=(320, 640, 1280),
    layers_per_block=2,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
PIXART = dict(
    sample_size=64,
    num_layers=28,
    num_attention_heads=16,
    attention_head_dim=72,
    in_channels=4,
    out_channels=8,
    patch_size=2,
    cross_attention_dim=1152,
    caption_channels=4096,
    use_additional_conditions=False,
)


@lru_cache
def architectures() -> dict[str, Architecture]:
    """The networks that can be profiled, by name; the miniature's configuration is read from its folder."""
    found = {}
    config_file = data_path("models", "mini", "unet", "config.json")
    if config_file.exists():
        config = {k: v for k, v in json.loads(config_file.read_text()).items() if not k.startswith("_")}
        found["mini"] = Architecture(
            UNet2DConditionModel,
            config,
            config["in_channels"],
            config["sample_size"],
            (16, config["cross_attention_dim"]),
            "this project, data/models/mini",
        )
    return found | {
        "sd15": Architecture(UNet2DConditionModel, SD15, 4, 64, (77, 768), "stable-diffusion-v1-5, unet/config.json"),
        "pixart": Architecture(
            PixArtTransformer2DModel,
            PIXART,
            4,
            64,
            (120, 4096),
            "PixArt-alpha/PixArt-XL-2-512x512, transformer/config.json",
        ),
        "sdxl": Architecture(
            UNet2DConditionModel, SDXL, 4, 128, (77, 2048), "stabilityai/stable-diffusion-xl-base-1.0, unet/config.json"
        ),
    }


def build_model(
    architecture: Architecture, dtype: torch.dtype, device: torch.device | str, seed: int = 0
) -> torch.nn.Module:
    """The network with small random weights, made on the device itself."""
    with torch.device("meta"):
        model = architecture.model_class(**architecture.config)
    model = cast(model, dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "norm" in name and name.endswith("weight"):
            tensor.fill_(1.0)  # keeps activations at an ordinary size
        elif tensor.is_floating_point():
            tensor.normal_(0.0, 0.02, generator=generator)
    return model


def cast(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """To another number type, without diffusers' advice for trained weights."""
    return torch.nn.Module.to(model, dtype)


def bare_family(architecture: Architecture, network: torch.nn.Module) -> Family:
    """A network without text encoders and autoencoder, called as its family calls it; every prompt is noise.

    Args:
        architecture: the network's.
        network: on its device, in its number type.
    """
    tokenizer = Stub(model_max_length=architecture.context[0])
    pipeline = Stub(
        scheduler=Stub(config=_SCHEDULE),
        vae=Stub(dtype=torch.float32, config=Stub(latent_channels=architecture.channels, force_upcast=False)),
        vae_scale_factor=8,  # latent pixels to pixels
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder_2=Stub(config=Stub(projection_dim=1280)),
    )
    setattr(pipeline, architecture.family.network_name, network)
    family = architecture.family(pipeline)
    shapes = family.shapes
    made = lambda name: torch.ones(shapes[name]) if name == "mask" else torch.randn(shapes[name])
    family.encode = lambda prompt: {name: made(name).to(**family.place) for name in shapes}
    return family


@lru_cache
def model_flop(architecture: Architecture) -> int:
    """Operations of one pass over one latent (a multiply-add counts two), counted by torch on shapes alone."""
    with torch.device("meta"):
        family = bare_family(architecture, architecture.model_class(**architecture.config).eval())
        latents, timesteps = torch.randn(1, *family.latent_shape), torch.full((1,), 500.0)
    conditioning = {name: part[None] for name, part in family.encode("").items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        family.denoise(latents, timesteps, conditioning)
    return counter.get_total_flops()
