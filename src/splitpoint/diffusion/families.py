"""What the step-level batch has to know of a kind of pipeline: a small class a family; a new one needs no other change.

A family says how a prompt becomes conditioning, how the network is called, what a latent looks like and how it becomes
a picture. diffusers itself is not imported here: a pipeline is recognised by the name of its class or of a parent's.
"""

import hashlib
import json
from threading import RLock
from weakref import WeakKeyDictionary

import torch

Conditioning = dict[str, torch.Tensor]  # name -> (lines, …); "text" is (lines, tokens, width)

_tokenizing = RLock()  # a fast tokenizer that two threads call at once raises "Already borrowed"
_digests: WeakKeyDictionary = WeakKeyDictionary()


class Family:
    """What all families share; a subclass adds ``shapes``, ``_encoded`` and ``denoise``.

    Args:
        pipeline: of a class that ``FAMILIES`` names.

    Raises:
        ValueError: if this pipeline lacks what its family needs.
    """

    network_name = "unet"
    samplers = ("ddim", "euler", "dpmsolver++")

    def __init__(self, pipeline):
        missing = [name for name in (self.network_name, "vae") if getattr(pipeline, name, None) is None]
        if missing:
            raise ValueError(f"pipeline={type(pipeline).__name__} has no {' and no '.join(missing)}")
        self.pipeline, self.network, self.vae = pipeline, getattr(pipeline, self.network_name), pipeline.vae
        channels = self.vae.config.latent_channels
        if self.latent_shape[0] != channels:
            raise ValueError(
                f"pipeline's network takes {self.latent_shape[0]} channels, a latent has {channels}: it also wants "
                "a picture (inpainting, editing), which no request carries"
            )

    @property
    def place(self) -> dict:
        """Where the network's numbers live and of which type; diffusers' own properties walk all layers for it."""
        weight = next(self.network.parameters())
        return {"device": weight.device, "dtype": weight.dtype}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        size = self.network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.network.config.in_channels, height, width

    @property
    def scheduler_settings(self) -> dict:
        """Settings of the pipeline's own scheduler."""
        return dict(self.pipeline.scheduler.config)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each part of one prompt's conditioning."""
        raise NotImplementedError

    def encode(self, prompt: str | None) -> Conditioning:
        """One prompt's conditioning without a batch dimension; None stands for no prompt, as guidance needs it."""
        with _tokenizing, torch.no_grad():
            return {name: tensor[0].to(**self.place) for name, tensor in self._encoded(prompt).items()}

    def _encoded(self, prompt: str | None) -> Conditioning:
        raise NotImplementedError

    def denoise(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The network's output, (lines, channels, height, width), from as many latents, steps and conditionings."""
        raise NotImplementedError

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, channels, h, w) as pictures (B, 3, H, W) with values in [0, 1]."""
        config = self.vae.config
        latents = latents.to(self.vae.device, self.vae.dtype) / config.scaling_factor + (config.shift_factor or 0.0)
        return (self.vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    @property
    def fingerprint(self) -> str:
        """What edge and device must share, in 16 hexadecimal digits: autoencoder, latent shape, kind of prediction.

        The networks' own weights are left out: they are meant to differ. Weights are compared in half precision.
        """
        if self.vae not in _digests:
            digest = hashlib.blake2b(digest_size=8)
            for name, tensor in sorted(self.vae.state_dict().items()):
                digest.update(name.encode() + tensor.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
            _digests[self.vae] = digest.hexdigest()
        config = self.network.config
        shared = [
            config.in_channels,
            config.sample_size,
            self.shapes["text"][-1],
            self.vae.config.scaling_factor,
            self.scheduler_settings.get("prediction_type"),
        ]
        return hashlib.blake2b((_digests[self.vae] + json.dumps(shared)).encode(), digest_size=8).hexdigest()


class StableDiffusion(Family):
    """Stable Diffusion 1 and 2, and the miniature: a U-Net steered by one text encoder."""

    def __init__(self, pipeline):
        super().__init__(pipeline)
        config = self.network.config
        for name in ("time_cond_proj_dim", "addition_embed_type", "encoder_hid_dim_type"):
            if getattr(config, name, None) is not None:
                raise ValueError(f"pipeline's U-Net wants {name}={getattr(config, name)!r}, which no request carries")

    @property
    def shapes(self):
        return {"text": (self.pipeline.tokenizer.model_max_length, self.network.config.cross_attention_dim)}

    def _encoded(self, prompt):
        return {"text": self.pipeline.encode_prompt(prompt or "", self.place["device"], 1, False)[0]}

    def denoise(self, latents, timesteps, conditioning):
        return self.network(latents, timesteps, encoder_hidden_states=conditioning["text"], return_dict=False)[0]


class StableDiffusionXL(Family):
    """SDXL: two text encoders, a pooled text embedding, and the picture's size as further conditioning."""

    def __init__(self, pipeline):
        super().__init__(pipeline)
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            raise ValueError("pipeline's autoencoder overflows in float16; call pipeline.vae.to(torch.float32) first")

    @property
    def shapes(self):
        width = self.pipeline.text_encoder_2.config.projection_dim
        return {
            "text": (self.pipeline.tokenizer_2.model_max_length, self.network.config.cross_attention_dim),
            "pooled": (width,),
        }

    def _encoded(self, prompt):
        text, empty, pooled, pooled_empty = self.pipeline.encode_prompt(
            prompt or "", None, self.place["device"], 1, prompt is None
        )
        return {"text": empty, "pooled": pooled_empty} if prompt is None else {"text": text, "pooled": pooled}

    def denoise(self, latents, timesteps, conditioning):
        size = tuple(self.pipeline.vae_scale_factor * side for side in self.latent_shape[1:])
        # original size, corner, target size; filled on the device, for a CUDA graph copies nothing from the processor
        times = torch.cat([latents.new_full((len(latents), 1), side) for side in (*size, 0, 0, *size)], 1)  # (B, 6)
        return self.network(
            latents,
            timesteps,
            encoder_hidden_states=conditioning["text"],
            added_cond_kwargs={"text_embeds": conditioning["pooled"], "time_ids": times},
            return_dict=False,
        )[0]


class PixArt(Family):
    """PixArt-alpha and -sigma: a transformer steered by T5, which also predicts a variance that nobody uses."""

    network_name = "transformer"

    @property
    def _tokens(self) -> int:
        return 300 if "Sigma" in type(self.pipeline).__name__ else 120  # each class's own default

    @property
    def shapes(self):
        return {"text": (self._tokens, self.network.config.caption_channels), "mask": (self._tokens,)}

    def _encoded(self, prompt):
        text, mask, *_ = self.pipeline.encode_prompt(
            prompt or "", False, device=self.place["device"], max_sequence_length=self._tokens
        )
        return {"text": text, "mask": mask}

    def denoise(self, latents, timesteps, conditioning):
        sizes = {"resolution": None, "aspect_ratio": None}
        if self.network.config.use_additional_conditions:
            height, width = (self.pipeline.vae_scale_factor * side for side in self.latent_shape[1:])
            sizes = {
                "resolution": latents.new_tensor([height, width]).expand(len(latents), -1),
                "aspect_ratio": latents.new_tensor([height / width]).expand(len(latents), -1),
            }
        output = self.network(
            latents,
            encoder_hidden_states=conditioning["text"],
            encoder_attention_mask=conditioning["mask"],
            timestep=timesteps,
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0]
        return output[:, : self.latent_shape[0]]


class StableDiffusion3(Family):
    """Stable Diffusion 3: a transformer steered by two CLIP encoders and T5, which predicts a flow."""

    network_name = "transformer"
    samplers = ("flow_euler",)

    @property
    def shapes(self):
        config = self.network.config
        tokens = self.pipeline.tokenizer.model_max_length + 256  # of CLIP, and diffusers' default for T5
        return {"text": (tokens, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}

    def _encoded(self, prompt):
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompt or "", None, None, device=self.place["device"], do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def denoise(self, latents, timesteps, conditioning):
        return self.network(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=conditioning["text"],
            pooled_projections=conditioning["pooled"],
            return_dict=False,
        )[0]


FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
    "StableDiffusion3Pipeline": StableDiffusion3,
}


def family_of(pipeline, argument: str = "pipeline") -> Family:
    """The family of a pipeline; ``argument`` is its name in a message.

    Raises:
        ValueError: if no family knows its class, or it lacks what its family needs.
    """
    for kind in type(pipeline).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__](pipeline)
    raise ValueError(f"{argument}={type(pipeline).__name__} is of no known family; there are: {', '.join(FAMILIES)}")
