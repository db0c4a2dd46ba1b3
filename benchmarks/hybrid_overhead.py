"""What a split costs over a bare loop of denoiser and scheduler calls, and what batching with early exit saves.

    python benchmarks/hybrid_overhead.py [--repeats 15] [--steps 50]

Prints ratios of processor seconds, which other programs on the machine hardly change; repeats of the compared runs are
interleaved, so that a slow minute slows all of them.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from splitpoint.diffusion.hybrid import HybridPipeline, decode, load_mini_hybrid, to_images
from splitpoint.diffusion.packet import Packet
from splitpoint.diffusion.users import User
from splitpoint.files import device_name

PROMPTS = ["birthday cake", "red apple", "dog face", "automobile", "umbrella", "rocket", "mushroom", "house"]
SHARES = np.linspace(0.1, 0.9, len(PROMPTS))  # of the steps that stay on the device


@torch.no_grad()
def bare_loop(hybrid: HybridPipeline, prompt: str, seed: int):
    """One unsplit picture: encode, step through denoiser and scheduler, decode; nothing else."""
    from diffusers import DDIMScheduler

    pipeline, scale = hybrid.pipeline, hybrid.guidance_scale
    scheduler = DDIMScheduler(**hybrid.scheduler_config)
    scheduler.set_timesteps(hybrid.num_steps)
    latent = torch.randn((1, *hybrid.family.latent_shape), generator=torch.Generator().manual_seed(seed))
    context = torch.cat([pipeline.encode_prompt(text, "cpu", 1, False)[0] for text in ("", prompt)])
    for timestep in scheduler.timesteps:
        without, with_prompt = pipeline.unet(torch.cat([latent] * 2), timestep, context).sample.chunk(2)
        latent = scheduler.step(without + scale * (with_prompt - without), timestep, latent).prev_sample
    return to_images(decode(pipeline, latent))[0]


def split_run(hybrid: HybridPipeline, prompt: str, seed: int, split_point: int):
    """The same picture through edge phase, bytes and device phase, with the same model on both sides.

    The device encodes the prompt a second time unless the packet holds the embeddings.
    """
    packet = hybrid.edge_phase(prompt, split_point, seed)[0]
    return hybrid.device_phase(Packet.from_bytes(packet.to_bytes()), User("me", hybrid.pipeline))


def one_after_the_other(hybrid: HybridPipeline, splits: list[int]) -> None:
    """The edge's part of eight requests, each alone."""
    for prompt, split in zip(PROMPTS, splits):
        hybrid.edge_phase(prompt, split)


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Processor seconds of each run in each repeat, after one warm-up of all."""
    seconds = {name: [] for name in runs}
    for repeat in range(-1, repeats):
        for name in list(runs) if repeat % 2 else list(runs)[::-1]:
            start = time.process_time()
            runs[name]()
            if repeat >= 0:
                seconds[name].append(time.process_time() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def show(what: str, ratios: np.ndarray) -> None:
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(f"{what:58} median {middle:.3f}   quartiles {low:.3f} to {high:.3f}   {len(ratios)} repeats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    hybrid = load_mini_hybrid(num_steps=options.steps)
    splits = [round(share * options.steps) for share in SHARES]
    print(
        f"{device_name()}, {torch.get_num_threads()} threads, N = {options.steps}, "
        f"guidance {hybrid.guidance_scale}, miniature"
    )
    assert bare_loop(hybrid, PROMPTS[0], 0) == split_run(hybrid, PROMPTS[0], 0, options.steps // 2)
    sending = HybridPipeline(
        hybrid.pipeline, {}, num_steps=options.steps, guidance_scale=hybrid.guidance_scale, send_embeddings=True
    )
    single = interleaved(
        {
            "bare": lambda: bare_loop(hybrid, PROMPTS[0], 0),
            "split": lambda: split_run(hybrid, PROMPTS[0], 0, options.steps // 2),
            "sending": lambda: split_run(sending, PROMPTS[0], 0, options.steps // 2),
        },
        options.repeats,
    )
    show("split run / bare loop (at most 1.02 is the aim)", single["split"] / single["bare"])
    show("the same with the embeddings in the packet", single["sending"] / single["bare"])
    batched = interleaved(
        {
            "early_exit": lambda: hybrid.edge_phase(PROMPTS, splits),
            "static": lambda: hybrid.edge_phase(PROMPTS, splits, batching="static"),
            "alone": lambda: one_after_the_other(hybrid, splits),
        },
        max(3, options.repeats // 3),
    )
    show("8 requests one after the other / early-exit batch", batched["alone"] / batched["early_exit"])
    show("8 requests one after the other / static batch", batched["alone"] / batched["static"])
    show("static batch / early-exit batch", batched["static"] / batched["early_exit"])


if __name__ == "__main__":
    main()
