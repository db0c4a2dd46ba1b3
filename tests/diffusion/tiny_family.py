"""A family whose network is a handful of numbers, so that a thousand schedules of a batch take seconds."""

import hashlib

import torch


class TinyFamily:
    """Mixes a latent's own numbers, its time step and its prompt; never one row with another."""

    samplers = ("ddim", "euler", "dpmsolver++", "flow_euler")
    latent_shape = (2, 3, 3)
    shapes = {"text": (2, 4)}
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    fingerprint = "0123456789abcdef"

    def __init__(self, prediction: str = "epsilon"):
        self.scheduler_settings = {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "steps_offset": 1,
            "prediction_type": prediction,
        }
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(18, 18, generator=generator) / 18**0.5
        self.texts = torch.randn(8, 18, generator=generator) / 8**0.5
        self.calls: list[int] = []
        self.broken: str | None = None

    def encode(self, prompt):
        seed = 0 if prompt is None else int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest(), "big")
        return {"text": torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))}

    def denoise(self, latents, timesteps, conditioning):
        self.calls.append(len(latents))
        text = conditioning["text"]
        if self.broken is not None and (text == self.encode(self.broken)["text"]).flatten(1).all(1).any():
            raise RuntimeError(f"{self.broken} breaks the network")
        steered = latents.flatten(1) @ self.weights + text.flatten(1) @ self.texts + timesteps[:, None] / 1000
        return torch.tanh(steered).reshape(latents.shape)
