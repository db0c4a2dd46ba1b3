"""Any row at any step: a batch that rows join and leave between two steps, each at a step of its own.

Four verbs. ``prepare`` makes a row of a request or of a packet (text, noise, table) and may run in another thread.
``admit`` lets prepared rows into the batch, and ``step`` takes every row one step on in one forward pass; rows may
differ in step, number of steps, guidance, sampler and prompt. ``finish`` makes a ``Packet`` of a row, and ``release``
forgets one. It is the one loop behind ``hybrid``'s edge phase and device phase, ``profile`` and a running edge.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from splitpoint.checks import a_mapping, finite_number, one_of, whole_number
from splitpoint.diffusion.families import Conditioning, Family
from splitpoint.diffusion.packet import MAX_GUIDANCE, Packet, check_prompt
from splitpoint.diffusion.sampler import (
    MAX_STEPS,
    SAMPLERS,
    StepTable,
    advance,
    rule_of,
    scheduler_settings,
    step_table,
)

REMEMBERED_PROMPTS = 64  # whose conditioning a batch keeps


@dataclass(frozen=True)
class Request:
    """One picture to draw, and how much of it here.

    Attributes:
        prompt: what to draw.
        seed: of the starting noise; nothing else decides it.
        num_steps: denoising steps N of the whole run.
        split_point: steps n left for the device, in [0, N]: the row leaves after N - n steps.
        guidance_scale: classifier-free guidance; 1 or less is off.
        scheduler: "ddim", "euler", "dpmsolver++" or "flow_euler".
        scheduler_options: settings of that scheduler beside the pipeline's own.
    """

    prompt: str
    seed: int = 0
    num_steps: int = 50
    split_point: int = 0
    guidance_scale: float = 7.5
    scheduler: str = "ddim"
    scheduler_options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_prompt("prompt", self.prompt)
        whole_number("seed", self.seed, 0, 2**63 - 1)
        whole_number("num_steps", self.num_steps, 1, MAX_STEPS)
        whole_number("split_point", self.split_point, 0, self.num_steps)
        finite_number("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE)
        one_of("scheduler", self.scheduler, SAMPLERS)
        a_mapping("scheduler_options", self.scheduler_options)


@dataclass(eq=False)
class Row:
    """One line of a batch. Its latent lies in the batch while it is in, and here before and afterwards."""

    prompt: str
    seed: int
    num_steps: int
    stop: int  # the step after which it leaves
    guidance_scale: float
    scheduler: str
    scheduler_config: dict
    table: StepTable
    conditioning: Conditioning  # (1 or 2, …): of the prompt, then under guidance of no prompt
    step: int  # steps done
    latent: torch.Tensor | None
    clean: torch.Tensor | None = None  # the last step's estimate, where a sampler remembers it
    error: Exception | None = None  # why it left, if it did not reach its stop

    @property
    def remaining(self) -> int:
        """Steps until it leaves."""
        return self.stop - self.step

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1


@dataclass(frozen=True, eq=False)
class Tick:
    """What one step did.

    Attributes:
        rows: that took part, in the order of ``latents``.
        latents: after the step, (rows, channels, height, width).
        left: rows that are no longer in the batch, because they reached their stop or have an ``error``.
    """

    rows: list[Row]
    latents: torch.Tensor
    left: list[Row]


class StepBatch:
    """Rows at any steps in one forward pass. One thread steps; ``prepare`` may be called from others.

    Args:
        family: the network and its text encoders, as from ``family_of``.
        size: None lets the batch grow and shrink with its rows. A number fixes the shape of every forward pass: free
            places are padded, and guidance is computed for all. Slower, but a row's numbers then do not depend on its
            company to the last bit.
        hold: gives a context in which the network may be used, for instance with an adapter on.
    """

    def __init__(
        self, family: Family, size: int | None = None, hold: Callable[[], AbstractContextManager] = nullcontext
    ):
        if size is not None:
            whole_number("size", size, 1)
        self.family, self.size, self.hold = family, size, hold
        self._encode = lru_cache(REMEMBERED_PROMPTS)(family.encode)
        self._rows: list[Row] = []
        self._slots: list[Row | None] = [] if size is None else [None] * size
        self._settled = False

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Rows in the batch."""
        return tuple(self._rows)

    # --- a row's life ---

    def prepare(self, request: Request | Packet) -> Row:
        """A row that is not yet in the batch; the batch itself is not touched.

        Args:
            request: a new picture, or the packet of one that someone else began, which then runs to its end.

        Raises:
            ValueError: for a sampler this family does not know, settings it refuses, or a packet that does not fit.
        """
        one_of("scheduler", request.scheduler, self.family.samplers)
        if isinstance(request, Packet):
            return self._continued(request)
        config = scheduler_settings(request.scheduler, self.family.scheduler_settings, request.scheduler_options)
        table = step_table(request.scheduler, config, request.num_steps)
        stop = int(request.num_steps) - int(request.split_point)
        shared = (request.prompt, int(request.seed), int(request.num_steps), stop, float(request.guidance_scale))
        conditioning = self.conditioning(request.prompt, request.guidance_scale > 1)
        noise = self.starting_noise(request.seed, table)
        return Row(*shared, request.scheduler, config, table, conditioning, 0, noise)

    def _continued(self, packet: Packet) -> Row:
        check_fits(packet, self.family)
        here, table = self.family.place, step_table(packet.scheduler, packet.scheduler_config, packet.num_steps)
        remembered = packet.history[-1].to(here["device"]) if packet.history else None
        if table.remembers[packet.step] and remembered is None:
            raise ValueError(
                f"packet of {packet.scheduler!r} at step {packet.step} lacks the estimate of the step before"
            )
        sent = packet.conditioning
        conditioning = {name: tensor.to(**here) for name, tensor in sent.items()} if sent else None
        return Row(
            packet.prompt,
            packet.seed,
            packet.num_steps,
            packet.num_steps,
            packet.guidance_scale,
            packet.scheduler,
            packet.scheduler_config,
            table,
            conditioning or self.conditioning(packet.prompt, packet.guidance_scale > 1),
            packet.step,
            self.starting_noise(packet.seed, table) if packet.latent is None else packet.latent.to(**here),
            remembered,
        )

    def conditioning(self, prompt: str, guided: bool) -> Conditioning:
        """What a row needs of its prompt, (1 or 2, …); remembered for the last few prompts."""
        with self.hold():
            lines = [self._encode(prompt), self._encode(None)] if guided else [self._encode(prompt)]
        return {name: torch.stack([line[name] for line in lines]) for name in lines[0]}

    def starting_noise(self, seed: int, table: StepTable) -> torch.Tensor:
        """The latent before the first step, (channels, height, width): drawn on the CPU so that all devices agree."""
        noise = torch.randn((1, *self.family.latent_shape), generator=torch.Generator().manual_seed(int(seed)))[0]
        return noise.to(**self.family.place) * table.start_scale

    def admit(self, rows: Row | Sequence[Row]) -> None:
        """Let prepared rows in; they take part from the next step on, and nothing is computed again for the others.

        Raises:
            ValueError: for a row that is in already, has no step left or failed, or if a fixed batch is full.
        """
        rows = [rows] if isinstance(rows, Row) else list(rows)
        for row in rows:
            if row in self._rows or row.latent is None or row.error is not None:
                raise ValueError(f"rows holds {row.prompt!r}, which is in a batch already, was released or has failed")
            if row.remaining < 1:
                raise ValueError(f"rows holds {row.prompt!r}, which has no step to do here: finish it")
        if self.size is not None and len(self._rows) + len(rows) > self.size:
            raise ValueError(
                f"rows holds {len(rows)} rows; {self.size - len(self._rows)} of {self.size} places are free"
            )
        self._rows += rows
        self._settled = self._settled and not rows

    def snapshot(self, row: Row) -> Packet:
        """What a row is now, as a packet that shares no memory with the batch; the row stays where it is.

        Raises:
            ValueError: for a row that was released or has failed.
        """
        if row.error is not None:
            raise ValueError(f"row {row.prompt!r} has failed: {row.error}") from row.error
        latent, clean = self._state(row)
        if latent is None:
            raise ValueError(f"row {row.prompt!r} was released")
        remembered = (clean.clone(),) if row.table.remembers[row.step] and clean is not None else ()
        return Packet(
            row.prompt,
            row.seed,
            row.step,
            row.num_steps,
            row.guidance_scale,
            row.scheduler,
            row.scheduler_config,
            self.family.fingerprint,
            latent.clone() if row.step else None,
            remembered,
        )

    def finish(self, row: Row) -> Packet:
        """Hand a row over as it is, wherever it stands; afterwards this batch no longer knows it.

        Raises:
            ValueError: for a row that was released or has failed.
        """
        packet = self.snapshot(row)
        self.release(row)
        return packet

    def release(self, row: Row) -> None:
        """Forget a row, in the batch or not; the others go on as if it had never been there."""
        if row in self._rows:
            self._rows.remove(row)
            self._settled = False
        row.latent = row.clean = None

    # --- a step ---

    @torch.no_grad()
    def step(self) -> Tick:
        """Take every row one step on.

        A row whose numbers are no longer finite leaves with an error. If the forward pass raises, it is repeated for
        each half of the rows until the culprit is alone, which then leaves with that error; the others go on.
        """
        self._settle()
        places = [place for place, row in enumerate(self._slots) if row is not None]
        rows = [self._slots[place] for place in places]
        if not rows:
            return Tick([], torch.empty(0, *self.family.latent_shape), [])
        self._latents, clean = self.compute()
        self._clean = None if self._clean is None else clean
        self._index = self._index + self._stride
        latents = self._latents if len(rows) == len(self._slots) else self._latents[places]
        finite = latents.flatten(1).isfinite().all(1).cpu().tolist()
        for row, well in zip(rows, finite):
            row.step += 1
            if not well and row.error is None:
                row.error = FloatingPointError(f"{row.prompt!r} is no longer finite after step {row.step}")
        left = [row for row in rows if row.error is not None or row.remaining == 0]
        for row in left:
            row.latent, row.clean = (None if part is None else part.clone() for part in self._state(row))
            self._rows.remove(row)
            self._settled = False
        return Tick(rows, latents, left)

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The numbers of one step for all places: next latents and ``clean``, as ``advance`` returns them."""
        rule = rule_of(self._values[self._index], self._latents.dim())
        inputs = (self._latents / rule.scale).to(self._latents.dtype)
        with self.hold():
            output = self._output(self._slots, self._lines, inputs, rule.timestep.flatten())
        return advance(self._latents, output, self._clean, rule)

    def _output(
        self, slots: list[Row | None], lines: "_Lines", inputs: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The network's output for every slot; a row that the network fails on gets its error, and zeros."""
        try:
            return lines.output(self.family, inputs, timesteps)
        except Exception as error:
            places = [place for place, row in enumerate(slots) if row is not None]
            if len(places) == 1:
                slots[places[0]].error = error
                return torch.zeros_like(inputs)
        output, padded = torch.zeros_like(inputs), self.size is not None
        for half in (places[: len(places) // 2], places[len(places) // 2 :]):
            kept = range(len(slots)) if padded else half  # a padded batch keeps its shape
            part = [slots[place] if place in half else None for place in kept]
            given = torch.zeros_like(inputs).index_copy(0, torch.tensor(half).to(inputs.device), inputs[half])
            lines = _Lines(part, self.family, padded)
            found = self._output(part, lines, given[list(kept)], timesteps[list(kept)])
            output[half] = found[half] if padded else found
        return output

    def _state(self, row: Row) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Latent and remembered estimate, wherever they are now."""
        if row.latent is not None or row not in self._slots:
            return row.latent, row.clean
        place = self._slots.index(row)
        return self._latents[place], None if self._clean is None else self._clean[place]

    def _settle(self) -> None:
        """Stack the rows anew if any came or went."""
        if self._settled:
            return
        states = {row: self._state(row) for row in self._rows}
        slots = self._placed()
        place = self.family.place
        blank = torch.zeros(self.family.latent_shape, **place)
        self._latents = (
            torch.stack([blank if row is None else states[row][0] for row in slots]) if slots else blank[None]
        )
        self._clean = None
        if any(any(row.table.remembers) for row in self._rows):
            known = [None if row is None else states[row][1] for row in slots]
            self._clean = torch.stack([blank.float() if clean is None else clean.float() for clean in known])
        for row in self._rows:
            row.latent = row.clean = None
        self._slots, self._settled = slots, True
        if not self._rows:
            return
        self._lines = _Lines(slots, self.family, self.size is not None)
        tables = {row.table: row.table.values for row in self._rows}
        starts, total = {}, 0
        for table, values in tables.items():
            starts[table], total = total, total + len(values)
        self._values = torch.cat(list(tables.values())).to(place["device"])
        index = [0 if row is None else starts[row.table] + row.step for row in slots]
        self._index = torch.tensor(index).to(place["device"])
        self._stride = torch.tensor([int(row is not None) for row in slots]).to(place["device"])

    def _placed(self) -> list[Row | None]:
        """Rows by place: one after the other, or each where it was with newcomers in the free places."""
        if self.size is None:
            return list(self._rows)
        slots = [row if row in self._rows else None for row in self._slots]
        for row in self._rows:
            if row not in slots:
                slots[slots.index(None)] = row
        return slots


class _Lines:
    """The lines of one forward pass: those without prompt of the guided rows first, then one of every row.

    Args:
        slots: rows by place, None where a place is padded.
        family: for shapes and place.
        double_all: give every place a line without prompt, so that the shape is always the same.
    """

    def __init__(self, slots: Sequence[Row | None], family: Family, double_all: bool):
        device = family.place["device"]
        guided = [place for place, row in enumerate(slots) if row is not None and row.guided]
        doubled = list(range(len(slots))) if double_all else guided
        self.doubled, self.all_guided = len(doubled), len(guided) == len(slots)
        tensor = lambda values: torch.tensor(values).to(device)
        self.slots = tensor([*doubled, *range(len(slots))])
        self.guided, self.halves = tensor(guided), tensor([doubled.index(place) for place in guided])
        scales = [1.0 if row is None else row.guidance_scale for row in slots]
        self.scales = tensor(scales).reshape(-1, *[1] * len(family.latent_shape))
        some = next(row for row in slots if row is not None)
        blank = {name: torch.zeros_like(part[0]) for name, part in some.conditioning.items()}
        without = [slots[place].conditioning if place in guided else None for place in doubled]
        with_prompt = [None if row is None else row.conditioning for row in slots]
        self.conditioning = {
            name: torch.stack(
                [blank[name] if parts is None else parts[name][1] for parts in without]
                + [blank[name] if parts is None else parts[name][0] for parts in with_prompt]
            )
            for name in blank
        }

    def output(self, family: Any, inputs: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The network's output for every place, guidance applied: (places, channels, height, width)."""
        if self.doubled:
            inputs, timesteps = inputs[self.slots], timesteps[self.slots]
        output = family.denoise(inputs, timesteps, self.conditioning)
        without, with_prompt = output[: self.doubled], output[self.doubled :]
        if self.all_guided:
            return guide(without, with_prompt, self.scales)
        if not len(self.guided):
            return with_prompt
        guided = guide(without[self.halves], with_prompt[self.guided], self.scales[self.guided])
        return with_prompt.index_copy(0, self.guided, guided.to(output.dtype))


def guide(without: torch.Tensor, with_prompt: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance: away from the output without prompt, by each row's own scale."""
    return (without + scales * (with_prompt - without)).to(with_prompt.dtype)


def check_fits(packet: Packet, family: Family) -> None:
    """Refuse a packet that this family cannot go on from.

    Raises:
        ValueError: saying what differs.
    """
    if packet.model != family.fingerprint:
        raise ValueError(
            f"packet is from another model: its fingerprint is {packet.model}, this one's is {family.fingerprint}"
        )
    shape = family.latent_shape
    if any(tuple(tensor.shape) != shape for tensor in (packet.latent, *packet.history) if tensor is not None):
        raise ValueError(f"packet's latent has another shape than {shape}, which this model needs")
    lines, sent = (2 if packet.guidance_scale > 1 else 1), packet.conditioning
    needed = {name: (lines, *one) for name, one in family.shapes.items()}
    found = {name: tuple(tensor.shape) for name, tensor in sent.items()}
    if sent and found != needed:
        raise ValueError(f"packet's embeddings have shapes {found}; {needed} are needed")
