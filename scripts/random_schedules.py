"""Fifty random schedules on the miniature: is every row what it would have been alone?

``python scripts/random_schedules.py`` writes ``data/quality/random_schedules.csv``: requests come at random ticks, with
their own sampler, number of steps, guidance and stop; some are cancelled on the way. Each is then drawn alone.
"""

import argparse
import random

import pandas as pd
import torch

from splitpoint.diffusion.accuracy import mini_prompts
from splitpoint.diffusion.batch import Request, StepBatch
from splitpoint.diffusion.families import Family, family_of
from splitpoint.diffusion.mini import load_mini
from splitpoint.diffusion.packet import Packet
from splitpoint.files import data_path, write_meta, write_rows
from splitpoint.progress import progress_bar

REQUESTS = (3, 8)  # fewest and most in a schedule


def random_requests(seed: int) -> list[tuple[int, int, Request]]:
    """A schedule: of each request the tick at which it comes, the steps until it is cancelled or -1, and itself."""
    rng, prompts, schedule = random.Random(seed), mini_prompts(), []
    for number in range(rng.randint(*REQUESTS)):
        num_steps = rng.choice([6, 10, 15, 20])
        request = Request(
            rng.choice(prompts),
            1000 * seed + number,
            num_steps,
            rng.randint(0, num_steps // 2),
            rng.choice([1.0, 2.0, 3.0, 5.0]),
            rng.choice(["ddim", "euler", "dpmsolver++"]),
        )
        schedule.append((rng.randint(0, 12), rng.randint(1, 5) if number and rng.random() < 0.2 else -1, request))
    return schedule


def run_together(family: Family, schedule: list[tuple[int, int, Request]]) -> tuple[list[Packet | None], list[int]]:
    """The packets of a schedule in one batch (None of a cancelled request), and the rows of each forward pass."""
    batch, rows, packets, sizes = StepBatch(family), {}, {}, []
    for tick in range(max(arrival for arrival, _, _ in schedule) + 1 + max(r.num_steps for _, _, r in schedule)):
        for number, (arrival, cancelled, request) in enumerate(schedule):
            if arrival == tick:
                rows[number] = batch.prepare(request)
                batch.admit(rows[number])
            elif number in rows and rows[number].step == cancelled and number not in packets:
                batch.release(rows[number])
        if len(batch):
            left = batch.step().left
            sizes.append(len(batch) + len(left))
            packets |= {number: batch.finish(row) for number, row in rows.items() if row in left}
    return [packets.get(number) for number in range(len(schedule))], sizes


def run_alone(family: Family, request: Request) -> Packet:
    """A request's packet from a batch of its own."""
    return run_together(family, [(0, -1, request)])[0][0]  # type: ignore[return-value]


def deviations(family: Family, seed: int) -> list[dict]:
    """One row a request that reached its stop: how far its latent and its picture are from those of a run alone."""
    schedule, found = random_requests(seed), []
    packets, sizes = run_together(family, schedule)
    for (arrival, _, request), packet in zip(schedule, packets):
        if packet is None:
            continue
        alone = run_alone(family, request)
        latents = torch.stack([packet.latent, alone.latent])  # type: ignore[list-item]  # (2, channels, height, width)
        one, other = family.decode(latents).mul(255).round()  # (3, H, W) each
        found.append(
            {
                "schedule": seed,
                "requests": len(schedule),
                "largest_batch": max(sizes),
                "arrival_tick": arrival,
                "scheduler": request.scheduler,
                "num_steps": request.num_steps,
                "steps_done": packet.step,
                "guidance_scale": request.guidance_scale,
                "latent_deviation": float((latents[0] - latents[1]).abs().max() / latents[1].abs().max()),
                "grey_levels": int((one - other).abs().max()),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=50)
    count = parser.parse_args().schedules
    family, rows = family_of(load_mini()), []
    with progress_bar("schedules", count) as bar:
        for seed in range(count):
            rows += deviations(family, seed)
            bar.update()
    path = data_path("quality", "random_schedules.csv")
    write_rows(path, rows)
    command = f"python scripts/random_schedules.py --schedules {count}"
    write_meta(path, kind="measured", command=command, seed=0, settings={"schedules": count}, licence="MIT")
    table = pd.DataFrame(rows)
    worst = (
        table.groupby("scheduler")[["latent_deviation", "grey_levels"]]
        .max()
        .assign(rows=table.scheduler.value_counts())
    )
    print(worst.to_string())


if __name__ == "__main__":
    main()
