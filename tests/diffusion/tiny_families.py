"""SDXL, PixArt and Stable Diffusion 3 pipelines of the real classes with random weights, small enough for a test."""

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from .tiny_pipeline import make_tokenizer


def _vae(channels: int = 4, **more) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16),
        norm_num_groups=8,
        latent_channels=channels,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **more,
    ).eval()


def _clip(tokenizer, projected: bool):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _t5(width: int = 32) -> tuple[T5Tokenizer, T5EncoderModel]:
    """One token a letter."""
    letters = [(token, -2.0) for token in ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]]
    config = T5Config(vocab_size=len(letters), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5Tokenizer(vocab=letters, extra_ids=0), T5EncoderModel(config).eval()


def make_sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=64,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    tokenizer = make_tokenizer()
    pipeline = StableDiffusionXLPipeline(
        _vae(force_upcast=False),
        _clip(tokenizer, False),
        _clip(tokenizer, True),
        tokenizer,
        tokenizer,
        unet.eval(),
        EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_pixart(seed: int = 0) -> PixArtAlphaPipeline:
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        use_additional_conditions=False,
    )
    pipeline = PixArtAlphaPipeline(*_t5(), _vae(), transformer.eval(), DPMSolverMultistepScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_sd3(seed: int = 0) -> StableDiffusion3Pipeline:
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=8,
    )
    tokenizer = make_tokenizer()
    t5_tokenizer, t5 = _t5(64)
    pipeline = StableDiffusion3Pipeline(
        transformer.eval(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        _vae(shift_factor=0.1),
        _clip(tokenizer, True),
        tokenizer,
        _clip(tokenizer, True),
        tokenizer,
        t5,
        t5_tokenizer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


MAKERS = {"sdxl": make_sdxl, "pixart": make_pixart, "sd3": make_sd3}
