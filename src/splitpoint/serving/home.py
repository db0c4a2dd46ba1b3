"""A process with the personal models, for those whose devices this machine plays."""

import asyncio
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from time import perf_counter

import torch

from splitpoint.diffusion.batch import Request, StepBatch
from splitpoint.diffusion.hybrid import HybridPipeline, load_mini_hybrid
from splitpoint.diffusion.mini_networks import token_ids
from splitpoint.diffusion.networks import architectures, model_flop
from splitpoint.diffusion.packet import Packet
from splitpoint.diffusion.sampler import scheduler_settings, step_table
from splitpoint.serving.browser_export import exported
from splitpoint.serving.browser_files import BrowserFile, offer, served_files
from splitpoint.serving.device import finish
from splitpoint.serving.engine import keep_prompts_out_of_the_log
from splitpoint.serving.protocol import as_png

_hybrid: list[HybridPipeline] = []


@dataclass(frozen=True)
class ForBrowsers:
    """What browsers need to draw by themselves.

    Args:
        facts: that a page is told, or nothing if it cannot.
        tables: of each sampler that the miniature takes, its ``config`` and its rows as in ``sampler.Rule``.
        files: to be served, by name.
        why_not: in one line, if there are no facts.
    """

    facts: dict = field(default_factory=dict)
    tables: dict[str, dict] = field(default_factory=dict)
    files: dict[str, BrowserFile] = field(default_factory=dict)
    why_not: str = ""


async def open_home() -> ProcessPoolExecutor:
    """The process, once its models are loaded; whoever opens it shuts it down."""
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_load)
    await asyncio.get_running_loop().run_in_executor(pool, _ready)
    return pool


def _load() -> None:
    torch.set_num_threads(1)
    keep_prompts_out_of_the_log()
    _hybrid.append(load_mini_hybrid())


def _ready() -> int:
    return len(_hybrid)


def for_browsers(num_steps: int) -> ForBrowsers:
    """Export the models if that was not done before, and say what there is; in that process."""
    hybrid = _hybrid[0]
    family = hybrid.family
    try:
        models = exported(hybrid)
        offered = offer(models, tuple(hybrid.users))
    except ValueError as error:
        return ForBrowsers(why_not=str(error))
    tables = {}
    for sampler in family.samplers:
        config = scheduler_settings(sampler, family.scheduler_settings)
        table = step_table(sampler, config, num_steps)
        tables[sampler] = dict(config=config, rows=table.values.tolist(), remembers=table.remembers)
    facts = offered | dict(
        fingerprint=family.fingerprint,
        latent_shape=family.latent_shape,
        text_shape=family.shapes["text"],
        flop=model_flop(architectures()["mini"]),  # of one line
    )
    return ForBrowsers(facts, tables, served_files(models))


def tokens_of(prompt: str) -> list[list[int]]:
    """Token numbers of a prompt and of no prompt, (2, tokens); in that process."""
    return token_ids(_hybrid[0].pipeline.tokenizer, [prompt, ""]).tolist()


def whole_packet(prompt: str, seed: int, said: dict) -> bytes:
    """A packet with no step done and its noise on board, for devices that cannot draw the seed's; in that process.

    Args:
        prompt, seed: what was asked.
        said: ``num_steps``, ``guidance_scale`` and ``scheduler`` of the edge.
    """
    batch = StepBatch(_hybrid[0].family)
    row = batch.prepare(Request(prompt, seed, said["num_steps"], 0, said["guidance_scale"], said["scheduler"]))
    noise = row.latent
    packet = batch.snapshot(row)
    return replace(packet, latent=noise).to_bytes()


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
    users = _hybrid[0].users
    user = users[style] if style else list(users.values())[seed % len(users)]
    run = said["num_steps"], 0, said["guidance_scale"], said["scheduler"]
    start = Packet.from_bytes(content) if content else Request(prompt, seed, *run)
    image, stepped, _ = finish(user, start)
    picture = as_png(image)
    return picture, perf_counter() - stepped
