"""The miniature's parts, untrained: how large they are, and how pictures and prompts become what they read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from splitpoint.diffusion.emoji import PIXELS, emoji_table
from splitpoint.diffusion.mini import FILLERS, MiniPipeline, words_of

TOKENS = 16
NUM_TRAIN_STEPS = 1000


@dataclass(frozen=True)
class MiniSize:
    """How large each part is, and how it is trained.

    Attributes:
        unet_channels: width of the U-Net at 8 x 8 and at 4 x 4.
        unet_layers: residual blocks a level.
        unet_attention: whether a level looks at the text, one entry a level.
        vae_channels: width of the autoencoder at 64, 32, 16 and 8 pixels.
        latent_channels: of the latent, 8 x 8 places.
        text_width: features a token.
        text_layers: transformer layers of the text encoder.
        batch: images a training step of the U-Net.
        learning_rate: its peak.
        vae_batch: images a training step of the autoencoder.
        vae_steps: training steps of the autoencoder.
        unet_steps: training steps of U-Net and text encoder.
    """

    unet_channels: tuple[int, ...]
    unet_layers: int
    unet_attention: tuple[bool, ...]
    vae_channels: tuple[int, ...]
    latent_channels: int
    text_width: int
    text_layers: int
    batch: int
    learning_rate: float
    vae_batch: int
    vae_steps: int
    unet_steps: int


SIZES = {
    "tiny": MiniSize((64, 96), 1, (False, True), (16, 32, 64, 96), 16, 64, 1, 32, 2e-3, 16, 5_500, 500),
    "small": MiniSize((128, 160), 1, (False, True), (24, 48, 72, 96), 16, 128, 2, 256, 1e-3, 64, 4_200, 5_500),
    "large": MiniSize((256, 384), 2, (True, True), (64, 128, 192, 256), 16, 256, 4, 256, 4e-4, 64, 20_000, 40_000),
}


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
    # Named beforehand, last letters have fixed numbers; found while training, they would be numbered by chance, and
    # with them which of two equally frequent pairs is merged first.
    pieces = {piece for text in texts for piece, _ in fitted.pre_tokenizer.pre_tokenize_str(text.lower())}
    last = sorted({piece[-1] + "</w>" for piece in pieces})
    fitted.train_from_iterator(
        [text.lower() for text in texts],
        trainers.BpeTrainer(
            vocab_size=8000,
            min_frequency=1,
            end_of_word_suffix="</w>",
            initial_alphabet=ByteLevel.alphabet(),
            special_tokens=["<|startoftext|>", "<|endoftext|>", *last],
            show_progress=False,
        ),
    )
    model = json.loads(fitted.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split()) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=TOKENS)


def build_mini(size: MiniSize, seed: int = 0) -> MiniPipeline:
    """An untrained pipeline of the given size, with random weights."""
    torch.manual_seed(seed)
    words = sorted({word for row in emoji_table() for word in words_of(row["name"])} | FILLERS)
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
        latent_channels=size.latent_channels,
        norm_num_groups=4,
        sample_size=PIXELS,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    down = tuple("CrossAttnDownBlock2D" if text_here else "DownBlock2D" for text_here in size.unet_attention)
    up = tuple("CrossAttnUpBlock2D" if text_here else "UpBlock2D" for text_here in reversed(size.unet_attention))
    unet = UNet2DConditionModel(
        sample_size=PIXELS // 8,
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
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


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of images uint8 (M, 64, 64, 3): two float
    (M, latent channels, 8, 8).

    Raises:
        ValueError: for images of another shape or type.
    """
    found = [vae.encode(part.to(vae.device)).latent_dist for part in to_pixels(images).split(batch)]
    return torch.cat([d.mean for d in found]).cpu(), torch.cat([d.std for d in found]).cpu()


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Token numbers of texts, (texts, tokens), each padded to the tokenizer's length."""
    return tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
