"""A process with the personal models, for those whose devices this machine plays."""

import asyncio
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import perf_counter

from splitpoint.diffusion.batch import Request
from splitpoint.diffusion.hybrid import load_mini_hybrid
from splitpoint.diffusion.packet import Packet
from splitpoint.serving.device import finish
from splitpoint.serving.protocol import as_png

_users: dict = {}


async def open_home() -> ProcessPoolExecutor:
    """The process, once its models are loaded; whoever opens it shuts it down."""
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_load)
    await asyncio.get_running_loop().run_in_executor(pool, _ready)
    return pool


def _load() -> None:
    import torch

    torch.set_num_threads(1)
    _users.update(load_mini_hybrid().users)


def _ready() -> int:
    return len(_users)


def draw_at_home(prompt: str, seed: int, said: dict, content: bytes | None, style: str | None) -> tuple[bytes, float]:
    """The steps that are left and the picture, in that process.

    Args:
        prompt, seed: what was asked.
        said: ``num_steps``, ``guidance_scale`` and ``scheduler`` of the edge.
        content: packet; None draws all steps.
        style: personal model; one by the seed if None.

    Returns:
        The picture as PNG, and the seconds that making it from the last latent took.
    """
    user = _users[style] if style else list(_users.values())[seed % len(_users)]
    run = said["num_steps"], 0, said["guidance_scale"], said["scheduler"]
    start = Packet.from_bytes(content) if content else Request(prompt, seed, *run)
    image, stepped, _ = finish(user, start)
    picture = as_png(image)
    return picture, perf_counter() - stepped
