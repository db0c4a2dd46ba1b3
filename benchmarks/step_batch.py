"""What it costs that rows of a batch stand at different steps, what the loop costs over a bare network, what a join.

    python benchmarks/step_batch.py [--repeats 40]

Ratios of processor seconds on the miniature with guidance; the compared steps are interleaved, so that a slow minute
slows all of them. A ratio belongs to one round: medians and quartiles are over rounds.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DDIMScheduler

from splitpoint.diffusion.batch import Request, Row, StepBatch
from splitpoint.diffusion.families import Family, family_of
from splitpoint.diffusion.mini import load_mini
from splitpoint.files import device_name

GUIDANCE = 3.0
STEPS = 900  # of a run, so that none ends while it is timed
MIXED = (("ddim", 900), ("euler", 700), ("dpmsolver++", 800), ("ddim", 750))  # sampler and steps of a run, in turn


def filled(family: Family, steps_done: list[int], mixed: bool = False) -> StepBatch:
    """A batch whose rows have done so many steps (cheaply: the number is set, the latent is noise)."""
    batch = StepBatch(family)
    for seed, done in enumerate(steps_done):
        sampler, num_steps = MIXED[seed % len(MIXED)] if mixed else ("ddim", STEPS)
        row = batch.prepare(Request("rocket", seed, num_steps, 0, GUIDANCE, sampler))
        row.step = done
        batch.admit(row)
    return batch


class Bare:
    """The network on a doubled batch, the halves combined, and diffusers' own update: all rows at one step."""

    def __init__(self, family: Family, size: int):
        self.family, self.place = family, 0
        lines = [family.encode(None)["text"]] * size + [family.encode("rocket")["text"]] * size
        self.context, self.latents = torch.stack(lines), torch.randn(size, *family.latent_shape)
        self.scheduler = DDIMScheduler.from_config(family.scheduler_settings, clip_sample=False)
        self.scheduler.set_timesteps(STEPS)

    @torch.no_grad()
    def step(self) -> None:
        timestep = self.scheduler.timesteps[self.place]
        output = self.family.network(torch.cat([self.latents] * 2), timestep, self.context, return_dict=False)[0]
        without, with_prompt = output.chunk(2)
        guided = without + GUIDANCE * (with_prompt - without)
        self.latents = self.scheduler.step(guided, timestep, self.latents, return_dict=False)[0]
        self.place += 1


class Joining:
    """Seven rows stay; an eighth joins (``join``), takes a step without news (``stay``), and leaves."""

    def __init__(self, family: Family):
        self.batch = filled(family, list(range(7)))
        self.guests: list[Row] = []

    def join(self) -> None:
        self.batch.admit(self.guests[-1])
        self.batch.step()

    def come(self) -> None:
        """Before the clock runs: text and noise are prepared off the loop, and last round's guest is gone."""
        if self.guests:
            self.batch.release(self.guests.pop())
            self.batch.step()
        self.guests.append(self.batch.prepare(Request("red apple", 9, STEPS, 0, GUIDANCE)))


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Processor seconds of each run in each round, in turns forwards and backwards, after three warm-ups."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-3, repeats):
        for name in list(runs) if repeat % 2 else list(runs)[::-1]:
            start = time.process_time()
            runs[name]()
            if repeat >= 0:
                seconds[name].append(time.process_time() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def show(what: str, values: np.ndarray, unit: str = "") -> None:
    low, middle, high = np.percentile(values, [25, 50, 75])
    print(f"{what:64} median {middle:.3f}{unit}   quartiles {low:.3f} to {high:.3f}   {len(values)} rounds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    family = family_of(load_mini())
    print(
        f"{device_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, guidance {GUIDANCE}, miniature"
    )

    equal, apart = filled(family, [100] * 8), filled(family, list(range(0, 400, 50)))
    different = filled(family, list(range(0, 400, 50)), mixed=True)
    seconds = interleaved({"equal": equal.step, "apart": apart.step, "different": different.step}, repeats)
    show("8 rows at 8 steps / at one step (at most 1.03 is the aim)", seconds["apart"] / seconds["equal"])
    show("with other samplers and numbers of steps, too / at one step", seconds["different"] / seconds["equal"])

    for size in (1, 8, 16):
        seconds = interleaved({"bare": Bare(family, size).step, "batch": filled(family, [0] * size).step}, repeats)
        show(f"StepBatch.step / bare network and update, batch {size}", seconds["batch"] / seconds["bare"])
        show("  the difference", 1e3 * (seconds["batch"] - seconds["bare"]), " ms")

    joining = Joining(family)
    network, passes = family.network, []
    hook = network.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    joining.come()
    passes.clear()
    joining.join()
    hook.remove()
    print(
        f"a row joins seven others: {len(passes)} forward pass of {passes[0]} lines, 2 a row: nothing is computed again"
    )
    values = {"join": [], "stay": []}
    for _ in range(repeats):
        joining.come()
        for name, run in (("join", joining.join), ("stay", joining.batch.step)):
            start = time.process_time()
            run()
            values[name].append(time.process_time() - start)
    join, stay = (np.array(values[name]) for name in ("join", "stay"))
    show("a step that a row joins / the step after it", join / stay)
    show("  the difference", 1e3 * (join - stay), " ms")


if __name__ == "__main__":
    main()
