"""An engine without a network: rows are counters, a packet is its request in letters."""

import asyncio

from splitpoint.serving.engine import EngineDied, HandOver, Stepped


class PretendEngine:
    """Steps as fast as the event loop turns, or whenever ``gate`` is set."""

    def __init__(self, num_steps=10, max_batch=4, by_hand=False):
        self.facts = dict(
            num_steps=num_steps,
            max_batch=max_batch,
            guidance_scale=1.0,
            scheduler="ddim",
            fingerprint="none",
            model="none",
        )
        self.by_hand, self.jobs, self.rows, self.starts, self.computed = by_hand, {}, {}, 0, []
        self.poisoned, self.die_at, self.ticks = set(), None, 0
        self.gate = asyncio.Semaphore(0)

    async def start(self, on_hand_over, on_death):
        self.hand_over, self.on_death = on_hand_over, on_death
        self.jobs, self.rows = {}, {}
        self.starts += 1

    def prepare(self, name, job):
        self.jobs[name] = job

    def forget(self, name):
        self.jobs.pop(name, None)
        self.rows.pop(name, None)

    async def step(self, joining, leaving):
        timing = any(str(name).startswith("timing") for name in [*joining, *self.rows])
        if self.by_hand and not timing:
            await self.gate.acquire()
        else:
            await asyncio.sleep(0)
        self.ticks += not timing
        if self.die_at is not None and self.ticks >= self.die_at:
            self.die_at = None
            self.on_death()
            raise EngineDied("gone")
        for name in leaving:
            self.forget(name)
        failed = {}
        for name in joining:
            self.rows[name] = self.jobs[name].steps
            if self.jobs[name].prompt in self.poisoned:
                failed[name] = "no longer finite"
        for name in failed:
            self.forget(name)
        for name in list(self.rows):
            self.rows[name] -= 1
            if not self.rows[name] and not timing:
                job = self.jobs[name]
                self.forget(name)
                self.computed.append(job.prompt)
                self.hand_over(HandOver(name, f"{job.prompt} {job.seed} {job.steps}".encode()))
        return Stepped(0.0, failed)

    async def stop(self):
        self.jobs, self.rows = {}, {}
