"""What the edge hands to a device: a noisy latent and the few facts needed to go on from it.

The byte form is a magic word, a JSON header, the tensors as raw little-endian numbers and a checksum: no pickle,
so a packet from a stranger can be refused but can never run code.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass, replace

import numpy as np
import torch

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
    scheduler: str  # "ddim", "euler" or "dpmsolver++"
    scheduler_config: dict  # settings of that scheduler that differ from diffusers' defaults
    model: str  # fingerprint of what edge and device must share
    latent: torch.Tensor | None  # (channels, height, width); None before the first step: the seed says it all
    history: tuple[torch.Tensor, ...] = ()  # earlier model outputs that a multistep scheduler still needs
    embeddings: torch.Tensor | None = None  # (1 or 2, tokens, width): prompt, then the empty prompt under guidance

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
            bits[name] += 8 * tensor.numel() * tensor.element_size()
        return bits

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        named = [
            ("latent", self.latent),
            *(("history", item) for item in self.history),
            ("embeddings", self.embeddings),
        ]
        return [(name, tensor) for name, tensor in named if tensor is not None]

    def astype(self, dtype: str) -> "Packet":
        """The same packet with every tensor as ``"float16"`` or ``"float32"``."""
        if dtype not in _DTYPES:
            raise ValueError(f"dtype={dtype!r} is not one of {', '.join(_DTYPES)}")
        cast = lambda tensor: None if tensor is None else tensor.to(_DTYPES[dtype][1])  # noqa: E731
        return replace(
            self, latent=cast(self.latent), history=tuple(map(cast, self.history)), embeddings=cast(self.embeddings)
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
        content = bytes(content)
        if content[: len(_MAGIC)] != _MAGIC:
            raise ValueError("content is not a hand-over packet: it does not begin with the magic word")
        body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if len(content) < len(_MAGIC) + 4 + _DIGEST_BYTES or digest != _checksum(body):
            raise ValueError(f"content is a corrupted packet: {len(content)} bytes that do not match their checksum")
        start = len(_MAGIC) + 4
        end = start + struct.unpack("<I", body[len(_MAGIC) : start])[0]
        try:
            header = json.loads(body[start:end])
            tensors = _read_tensors(header.pop("tensors"), body[end:])
            packet = cls(
                **header,
                latent=next(iter(tensors["latent"]), None),
                history=tuple(tensors["history"]),
                embeddings=next(iter(tensors["embeddings"]), None),
            )
            packet._check()
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"content is a malformed packet: {error}") from error
        return packet

    def _check(self) -> None:
        if not 0 <= self.step <= self.num_steps:
            raise ValueError(f"step={self.step} of a packet must lie in [0, num_steps={self.num_steps}]")
        if self.step > 0 and self.latent is None:
            raise ValueError(f"a packet with step={self.step} must carry its latent")
        if not all(torch.isfinite(tensor).all() for _, tensor in self._tensors()):
            raise ValueError("a tensor of the packet holds NaN or infinity")


def _read_tensors(shapes: list, payload: bytes) -> dict[str, list[torch.Tensor]]:
    tensors: dict[str, list[torch.Tensor]] = {"latent": [], "history": [], "embeddings": []}
    for name, dtype, shape in shapes:
        kind = _DTYPES[dtype][0]
        size = math.prod(shape) * kind.itemsize
        if len(payload) < size:
            raise ValueError(f"content is a malformed packet: {name} is cut short")
        tensors[name].append(
            torch.from_numpy(np.frombuffer(payload[:size], kind).astype(kind.newbyteorder("=")).reshape(shape))
        )
        payload = payload[size:]
    if payload:
        raise ValueError(f"content is a malformed packet: {len(payload)} bytes belong to no tensor")
    return tensors


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
