"""A process with the personal models, for those whose devices this machine plays."""

import asyncio
import io
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import perf_counter

from splitpoint.diffusion.batch import Request, StepBatch
from splitpoint.diffusion.families import family_of
from splitpoint.diffusion.hybrid import load_mini_hybrid, to_images
from splitpoint.diffusion.packet import Packet

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
    family = family_of(user.pipeline)
    run = said["num_steps"], 0, said["guidance_scale"], said["scheduler"]
    with user.model():
        batch = StepBatch(family)
        row = batch.prepare(Packet.from_bytes(content) if content else Request(prompt, seed, *run))
        if row.remaining:
            batch.admit(row)
        while row.remaining:
            batch.step()
            if row.error is not None:
                raise row.error
        began, picture = perf_counter(), io.BytesIO()
        to_images(family.decode(row.latent[None]))[0].save(picture, "PNG")  # type: ignore[index]
    return picture.getvalue(), perf_counter() - began
