"""What the edge hands to a device: a noisy latent and the few facts needed to go on from it.

The byte form is a magic word, a JSON header, the tensors as raw little-endian numbers and a checksum: no pickle,
so a packet from a stranger can be refused but can never run code.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
import torch

from splitpoint.checks import finite_number, instance_of, one_of, whole_number
from splitpoint.diffusion.sampler import MAX_STEPS, SAMPLERS

MAX_PROMPT = 10_000  # characters
MAX_GUIDANCE = 1000.0
_MAX_HEADER_BYTES = 2**18
_MAX_TRAIN_STEPS = 10_000  # noise levels of a schedule; models have 1 000
_MAX_SIDE = 2**16  # of any tensor
_MAGIC = b"SPLITPT1"
_DIGEST_BYTES = 16
_DTYPES = {"float16": (np.dtype("<f2"), torch.float16), "float32": (np.dtype("<f4"), torch.float32)}


@dataclass(frozen=True)
class Packet:
    """One request between its last step on the edge and its first step on the device."""

    prompt: str  # what the user typed; the device encodes it again unless the embeddings travel too
    seed: int  # of this request's starting noise
    step: int  # denoising steps already done on the edge
    num_steps: int  # denoising steps of the whole run, N
    guidance_scale: float  # classifier-free guidance; 1 or less is off
    scheduler: str  # "ddim", "euler", "dpmsolver++" or "flow_euler"
    scheduler_config: dict  # settings of that scheduler that differ from diffusers' defaults
    model: str  # fingerprint of what edge and device must share
    latent: torch.Tensor | None  # (channels, height, width); None before the first step: the seed says it all
    history: tuple[torch.Tensor, ...] = ()  # the last step's estimate, where a two-step sampler still needs it
    embeddings: torch.Tensor | None = None  # (1 or 2, tokens, width): prompt, then no prompt under guidance
    extras: dict[str, torch.Tensor] = field(default_factory=dict)  # what else a model wants, (1 or 2, …) by name

    @property
    def conditioning(self) -> dict[str, torch.Tensor]:
        """Text embeddings and extras by name, or nothing if the device is to encode the prompt itself."""
        return {} if self.embeddings is None else {"text": self.embeddings, **self.extras}

    def with_conditioning(self, conditioning: dict[str, torch.Tensor]) -> "Packet":
        """The same packet with embeddings on board."""
        extras = {name: tensor for name, tensor in conditioning.items() if name != "text"}
        return replace(self, embeddings=conditioning["text"], extras=extras)

    @property
    def split_point(self) -> int:
        """Denoising steps left for the device."""
        return self.num_steps - self.step

    @property
    def size_bits(self) -> int:
        """Size of the byte form, in bits."""
        return 8 * len(self.to_bytes())

    @property
    def tensor_bits(self) -> dict[str, int]:
        """Bits spent on each kind of tensor; the rest of ``size_bits`` is the header and the checksum."""
        bits = {"latent": 0, "history": 0, "embeddings": 0}
        for name, tensor in self._tensors():
            bits[name.partition("/")[0]] += 8 * tensor.numel() * tensor.element_size()
        return bits

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        named = [
            ("latent", self.latent),
            *(("history", item) for item in self.history),
            ("embeddings", self.embeddings),
            *((f"embeddings/{name}", tensor) for name, tensor in self.extras.items()),
        ]
        return [(name, tensor) for name, tensor in named if tensor is not None]

    def astype(self, dtype: str) -> "Packet":
        """The same packet with every tensor as ``"float16"`` or ``"float32"``."""
        one_of("dtype", dtype, _DTYPES)
        cast = lambda tensor: None if tensor is None else tensor.to(_DTYPES[dtype][1])
        return replace(
            self,
            latent=cast(self.latent),
            history=tuple(map(cast, self.history)),
            embeddings=cast(self.embeddings),
            extras={name: cast(tensor) for name, tensor in self.extras.items()},
        )

    def to_bytes(self) -> bytes:
        """The packet as it travels: magic word, header length, JSON header, tensors, checksum."""
        shapes, buffers = [], []
        for name, tensor in self._tensors():
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in _DTYPES:
                raise ValueError(f"{name} has dtype {dtype}; a packet carries {' or '.join(_DTYPES)}")
            shapes.append([name, dtype, list(tensor.shape)])
            buffers.append(tensor.detach().cpu().contiguous().numpy().astype(_DTYPES[dtype][0], copy=False).tobytes())
        header = json.dumps(
            {
                "prompt": self.prompt,
                "seed": self.seed,
                "step": self.step,
                "num_steps": self.num_steps,
                "guidance_scale": self.guidance_scale,
                "scheduler": self.scheduler,
                "scheduler_config": self.scheduler_config,
                "model": self.model,
                "tensors": shapes,
            },
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()
        body = _MAGIC + struct.pack("<I", len(header)) + header + b"".join(buffers)
        return body + _checksum(body)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Packet":
        """Read a packet, refusing anything that is not exactly what ``to_bytes`` wrote.

        Raises:
            ValueError: if the bytes are not a packet, are cut short, or were changed on the way.
        """
        instance_of("content", content, bytes | bytearray | memoryview)
        content = bytes(content)
        if content[: len(_MAGIC)] != _MAGIC:
            raise ValueError("content is not a hand-over packet: it does not begin with the magic word")
        body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if len(content) < len(_MAGIC) + 4 + _DIGEST_BYTES or digest != _checksum(body):
            raise ValueError(f"content is a corrupted packet: {len(content)} bytes that do not match their checksum")
        start = len(_MAGIC) + 4
        end = start + struct.unpack("<I", body[len(_MAGIC) : start])[0]
        if end > min(len(body), start + _MAX_HEADER_BYTES):
            raise ValueError(f"content is a malformed packet: a header of {end - start} bytes")
        try:
            header = json.loads(body[start:end], parse_constant=_not_a_number)
            tensors = _read_tensors(header.pop("tensors"), body[end:])
            packet = cls(
                **header,
                latent=tensors.pop("latent", None),
                history=(tensors.pop("history"),) if "history" in tensors else (),
                embeddings=tensors.pop("embeddings", None),
                extras={name.partition("/")[2]: tensor for name, tensor in tensors.items()},
            )
            packet.check()
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"content is a malformed packet: {error}") from error
        return packet

    def check(self) -> None:
        """Refuse values that no run has; nothing of their size is allocated before.

        Raises:
            ValueError: naming the field, its value and the valid range.
        """
        check_prompt("prompt", self.prompt)
        for name, value, low, high in (
            ("seed", self.seed, 0, 2**63 - 1),
            ("num_steps", self.num_steps, 1, MAX_STEPS),
            ("step", self.step, 0, self.num_steps),
        ):
            _no_bool(name, value)
            whole_number(name, value, low, high)
        _no_bool("guidance_scale", self.guidance_scale)
        finite_number("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE)
        one_of("scheduler", self.scheduler, SAMPLERS)
        _check_config(self.scheduler_config)
        if not isinstance(self.model, str) or len(self.model) > 64:
            raise ValueError(f"model={self.model!r} of a packet must be a fingerprint")
        if self.step > 0 and self.latent is None:
            raise ValueError(f"a packet with step={self.step} must carry its latent")
        if self.extras and self.embeddings is None:
            raise ValueError(f"a packet with {', '.join(self.extras)} must carry its embeddings")
        if not all(torch.isfinite(tensor).all() for _, tensor in self._tensors()):
            raise ValueError("a tensor of the packet holds NaN or infinity")


def check_prompt(name: str, prompt: str) -> None:
    """Refuse what is not a text, is empty or too long, or cannot be written down.

    Raises:
        ValueError: naming the argument, its value and the valid range.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{name}={prompt!r} must be a text that is not empty")
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"{name} has {len(prompt)} characters; at most {MAX_PROMPT} are valid")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half a character, which no encoding can write: {error.reason}") from error


def _check_config(config: dict) -> None:
    """Refuse settings that are not plain, or that would make a schedule of millions of steps."""
    if not isinstance(config, dict) or len(config) > 64:
        raise ValueError("scheduler_config of a packet must be an object of at most 64 settings")
    for name, value in config.items():
        values = value if isinstance(value, list) else [value]
        if len(values) > _MAX_TRAIN_STEPS or not all(
            part is None or isinstance(part, (bool, str)) or (isinstance(part, (int, float)) and abs(part) <= 1e9)
            for part in values
        ):
            raise ValueError(f"scheduler_config[{name!r}]={str(value)[:50]} must be a plain value of at most 1e9")
    if "num_train_timesteps" in config:
        _no_bool("num_train_timesteps", config["num_train_timesteps"])
        whole_number("num_train_timesteps", config["num_train_timesteps"], 1, _MAX_TRAIN_STEPS)


def _no_bool(name: str, value: object) -> None:
    if isinstance(value, (bool, str)):
        raise ValueError(f"{name}={value!r} must be a number")


def _not_a_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number")


def _read_tensors(shapes: list, payload: bytes) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, dtype, shape in shapes:
        if name in tensors or name.partition("/")[0] not in ("latent", "history", "embeddings"):
            raise ValueError(f"tensor {name!r} is unknown or there twice")
        if not 1 <= len(shape) <= 5 or not all(type(side) is int and 1 <= side <= _MAX_SIDE for side in shape):
            raise ValueError(f"{name} has shape {str(shape)[:50]}; valid are sides in [1, {_MAX_SIDE}]")
        kind = _DTYPES[dtype][0]
        size = math.prod(shape) * kind.itemsize
        if len(payload) < size:
            raise ValueError(f"{name} is cut short")
        numbers = np.frombuffer(payload[:size], kind).astype(kind.newbyteorder("="))
        tensors[name] = torch.from_numpy(numbers.reshape(shape))
        payload = payload[size:]
    if payload:
        raise ValueError(f"{len(payload)} bytes belong to no tensor")
    return tensors


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
