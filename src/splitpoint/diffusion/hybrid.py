"""Two models share one denoising run: the edge takes the first steps, the user's device takes the last.

The split point n is the number of LAST steps on the device: 0 is all edge, N is all device. The edge serves all
requests in one ``StepBatch`` that each leaves at its own step; what leaves is a ``Packet``; the device goes on from
the packet alone. Works with the miniature and with every pipeline that ``families`` knows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from splitpoint.checks import a_mapping, a_sequence, finite_number, instance_of, one_of, one_or_many, whole_number
from splitpoint.diffusion.batch import Request, Row, StepBatch, check_fits
from splitpoint.diffusion.families import family_of
from splitpoint.diffusion.packet import MAX_GUIDANCE, Packet, check_prompt
from splitpoint.diffusion.sampler import scheduler_settings, step_table
from splitpoint.diffusion.users import ADAPTER_FILE, User, adapter_on, load_users, mini_users
from splitpoint.files import data_path, read_meta
from splitpoint.progress import progress_bar

BATCHINGS = ("early_exit", "static")

OnStep = Callable[[int, list[int], torch.Tensor], None]
Cancel = Callable[[], bool] | Event


class GenerationCancelled(RuntimeError):
    """Raised between two denoising steps once ``cancel`` says so."""


@dataclass(frozen=True)
class HybridOutput:
    """What ``hybrid_generate`` returns, one entry per request."""

    images: list[Image.Image]
    packets: list[Packet]
    latents: torch.Tensor  # (requests, channels, height, width), fully denoised


class HybridPipeline:
    """A cluster-wide model on the edge and one personal model per user, sharing each denoising run.

    Args:
        pipeline: the edge's cluster-wide model, of a class that ``families`` knows.
        users: name -> ``User``, as from ``load_users`` or ``load_mini_users``.
        num_steps: denoising steps N of a whole run.
        scheduler: "ddim", "euler" or "dpmsolver++"; "flow_euler" for Stable Diffusion 3.
        scheduler_options: settings of that scheduler beside the pipeline's own, for instance
            ``{"timestep_spacing": "trailing"}`` or, for "euler", ``{"use_karras_sigmas": True}``.
        guidance_scale: classifier-free guidance; 1 or less turns it off.
        packet_dtype: "float32" continues exactly, "float16" halves the packet.
        send_embeddings: put the text embeddings into the packet instead of encoding the prompt again on the device.
        max_batch: most requests the edge admits at once; no limit if left out.

    Raises:
        ValueError: naming the argument, its value and the valid range.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        users: Mapping[str, User],
        *,
        num_steps: int = 50,
        scheduler: str = "ddim",
        scheduler_options: Mapping[str, object] | None = None,
        guidance_scale: float = 7.5,
        packet_dtype: str = "float32",
        send_embeddings: bool = False,
        max_batch: int | None = None,
    ):
        self.family = family_of(pipeline)
        whole_number("num_steps", num_steps, 1, pipeline.scheduler.config.num_train_timesteps)
        one_of("packet_dtype", packet_dtype, ("float16", "float32"))
        finite_number("guidance_scale", guidance_scale, 0, MAX_GUIDANCE)
        if max_batch is not None:
            whole_number("max_batch", max_batch, 1)
        one_of("scheduler", scheduler, self.family.samplers)
        for user in a_mapping("users", users).values():
            instance_of("users", user, User)
        options = a_mapping("scheduler_options", {} if scheduler_options is None else scheduler_options)
        self.pipeline, self.users = pipeline, dict(users)
        self.num_steps, self.guidance_scale = int(num_steps), float(guidance_scale)
        self.scheduler, self.scheduler_options = scheduler, dict(options)
        self.scheduler_config = scheduler_settings(scheduler, self.family.scheduler_settings, self.scheduler_options)
        self.table = step_table(scheduler, self.scheduler_config, self.num_steps)
        self.packet_dtype, self.send_embeddings, self.max_batch = packet_dtype, send_embeddings, max_batch
        self.model = self.family.fingerprint

    @torch.no_grad()
    def edge_phase(
        self,
        prompts: Sequence[str] | str,
        split_points: Sequence[int] | int,
        seed: Sequence[int] | int = 0,
        *,
        batching: str = "early_exit",
        share_runs: bool = False,
        on_step: OnStep | None = None,
        progress: bool | None = None,
        cancel: Cancel | None = None,
    ) -> list[Packet]:
        """Run the first N - n steps of every request in one batch and hand each request over at its own step.

        Args:
            prompts: one per request, or one for all.
            split_points: steps left for the device, in [0, N], one per request, or one for all.
            seed: of the starting noise, one per request, or one for all; nothing else decides a request's noise.
            batching: "early_exit" computes a request only until it leaves, "static" carries all until the last leaves.
            share_runs: requests with the same prompt and seed share one row of the batch.
            on_step: called after each step with its number, the rows in the batch and their latents.
            progress: True shows a bar, False none; by default one on a terminal and in a notebook.
            cancel: a callable or ``threading.Event``; true ends the run with ``GenerationCancelled``.

        Returns:
            One packet per request.

        Raises:
            ValueError: naming the argument, its value and the valid range.
        """
        prompts, split_points, seeds = check_requests(self.num_steps, prompts, split_points, seed)
        one_of("batching", batching, BATCHINGS)
        keys = [(prompt, seed) if share_runs else i for i, (prompt, seed) in enumerate(zip(prompts, seeds))]
        stops: dict[object, set[int]] = {}  # of each row of the batch: the steps at which a request leaves it
        for key, split in zip(keys, split_points):
            stops.setdefault(key, set()).add(self.num_steps - split)
        served = sum(max(steps) > 0 for steps in stops.values())
        if self.max_batch is not None and served > self.max_batch:
            raise ValueError(f"{served} requests are more than the edge admits: max_batch={self.max_batch}")
        longest = max(map(max, stops.values()))
        batch, rows, taken = StepBatch(self.family), {}, {}

        def hand_over() -> None:
            for key, row in rows.items():
                if row.step in stops[key] and (key, row.step) not in taken:
                    taken[key, row.step] = batch.snapshot(row)

        with adapter_on(self.pipeline, None):
            for key, prompt, seed_ in zip(keys, prompts, seeds):
                stop = max(stops[key])
                stop = longest if batching == "static" and stop else stop
                if key not in rows:
                    rows[key] = batch.prepare(self._request(prompt, seed_, self.num_steps - stop))
            hand_over()
            moving = [row for row in rows.values() if row.remaining]
            _run(batch, moving, hand_over, on_step, "edge", progress, cancel)
        packets = [taken[key, self.num_steps - split] for key, split in zip(keys, split_points)]
        if self.send_embeddings:
            packets = [packet.with_conditioning(rows[key].conditioning) for key, packet in zip(keys, packets)]
        return [packet.astype(self.packet_dtype) for packet in packets]

    def _request(self, prompt: str, seed: int, split_point: int) -> Request:
        run = self.num_steps, split_point, self.guidance_scale, self.scheduler, self.scheduler_options
        return Request(prompt, seed, *run)

    def device_phase(self, packet: Packet, user: str | User, **watch) -> Image.Image:
        """Finish one request on one user's device, from the packet alone.

        Args:
            packet: as handed over by ``edge_phase`` or read by ``Packet.from_bytes``.
            user: name of a user, or a ``User``.
            watch: ``on_step``, ``progress`` and ``cancel`` as in ``edge_phase``.

        Raises:
            ValueError: for an unknown user, or a packet that does not fit that user's model.
        """
        user = self.user(user)
        instance_of("packet", packet, Packet)
        return to_images(decode(user.pipeline, self.device_latents([packet], user, **watch)))[0]

    @torch.no_grad()
    def device_latents(
        self,
        packets: Sequence[Packet],
        user: str | User,
        *,
        on_step: OnStep | None = None,
        progress: bool | None = None,
        cancel: Cancel | None = None,
    ) -> torch.Tensor:
        """Finish several packets on one user's device in one batch that each joins at its own step.

        Args:
            packets: one or more, of runs with one number of steps, guidance and scheduler.
            user: name of a user, or a ``User``.
            on_step, progress, cancel: as in ``edge_phase``.

        Returns:
            Denoised latents, (packets, channels, height, width).

        Raises:
            ValueError: for an unknown user, no packet, packets of different runs, or one that does not fit the model.
        """
        user = self.user(user)
        family = family_of(user.pipeline)
        for packet in a_sequence("packets", packets):
            instance_of("packets", packet, Packet)
            check_fits(packet, family)
            if _run_of(packet) != _run_of(packets[0]):
                raise ValueError("packets of one batch must agree on num_steps, guidance_scale and scheduler")
        with user.model():
            batch = StepBatch(family)
            rows = [batch.prepare(packet) for packet in packets]
            _run(batch, rows, None, on_step, user.name, progress, cancel)
        return torch.stack([row.latent for row in rows])  # type: ignore[arg-type]

    def compare(
        self,
        prompt: str,
        users: Sequence[str | User],
        split_points: Sequence[int],
        seed: int = 0,
        *,
        progress: bool | None = None,
        cancel: Cancel | None = None,
    ) -> torch.Tensor:
        """One prompt for several users at several split points, all from the same starting noise.

        The edge runs once; each device finishes all of its split points in one growing batch.

        Returns:
            Pictures (split points, users, 3, H, W), values in [0, 1].

        Raises:
            ValueError: naming the argument, its value and the valid range.
        """
        users = [self.user(user) for user in one_or_many("users", users, str | User)]
        instance_of("prompt", prompt, str)
        packets = self.edge_phase(prompt, split_points, seed, share_runs=True, progress=progress, cancel=cancel)
        latents = [self.device_latents(packets, user, progress=progress, cancel=cancel) for user in users]
        return torch.stack([decode(user.pipeline, latent).cpu() for user, latent in zip(users, latents)], dim=1)

    def generate(
        self,
        prompts: Sequence[str] | str,
        users: Sequence[str | User] | str | User,
        split_points: Sequence[int] | int,
        seed: Sequence[int] | int = 0,
        *,
        batching: str = "early_exit",
        on_step: OnStep | None = None,
        progress: bool | None = None,
        cancel: Cancel | None = None,
    ) -> HybridOutput:
        """Edge phase, hand-over as bytes, then each request alone on its user's device; see ``hybrid_generate``."""
        users = [self.user(user) for user in one_or_many("users", users, str | User)]
        prompts, split_points, seeds, users = check_requests(self.num_steps, prompts, split_points, seed, users)
        watch = {"on_step": on_step, "progress": progress, "cancel": cancel}
        packets = self.edge_phase(prompts, split_points, seeds, batching=batching, **watch)
        packets = [Packet.from_bytes(packet.to_bytes()) for packet in packets]
        latents = [self.device_latents([packet], user, **watch) for packet, user in zip(packets, users)]
        images = [to_images(decode(user.pipeline, latent))[0] for user, latent in zip(users, latents)]
        return HybridOutput(images, packets, torch.cat(latents))

    def noise_levels(self) -> torch.Tensor:
        """Noise per unit of signal in the latent after 0, 1, … N steps, (N + 1,): what a step number stands for."""
        return self.table.noise_levels.clone()

    def user(self, user: str | User) -> User:
        """The user of a name.

        Raises:
            ValueError: for an unknown name.
        """
        if isinstance(user, User):
            return user
        if not isinstance(user, str) or user not in self.users:
            raise ValueError(f"user={user!r} is unknown; there are {', '.join(self.users) or 'none'}")
        return self.users[user]


def hybrid_generate(
    prompts: Sequence[str] | str,
    users: Sequence[str | User] | str | User,
    split_points: Sequence[int] | int,
    num_steps: int = 50,
    seed: Sequence[int] | int = 0,
    *,
    batching: str = "early_exit",
    guidance_scale: float | None = None,
    scheduler: str = "ddim",
    pipeline: DiffusionPipeline | None = None,
    packet_dtype: str = "float32",
    send_embeddings: bool = False,
    on_step: OnStep | None = None,
    progress: bool | None = None,
    cancel: Cancel | None = None,
) -> HybridOutput:
    """Draw one image per request, its first steps on the edge and its last ``split_points`` steps on a device.

    Args:
        prompts: one per request, or one for all.
        users: names of the miniature's users or ``User`` objects, one per request, or one for all.
        split_points: steps on the device, in [0, num_steps]: 0 is all edge, num_steps is all device.
        num_steps: denoising steps N.
        seed: of the starting noise, one per request, or one for all: the same seed gives the same noise.
        batching: "early_exit" or "static", see ``HybridPipeline.edge_phase``.
        guidance_scale: classifier-free guidance; by default the miniature's own, or 7.5 for another pipeline.
        scheduler: "ddim", "euler" or "dpmsolver++"; "flow_euler" for Stable Diffusion 3.
        pipeline: the edge's model; the miniature if left out.
        packet_dtype: "float32" continues exactly, "float16" halves the packet.
        send_embeddings: carry the text embeddings in the packet.
        on_step: called after each step with its number, the rows in the batch and their latents.
        progress: True shows bars, False none; by default some on a terminal and in a notebook.
        cancel: a callable or ``threading.Event``; true ends the run with ``GenerationCancelled``.

    Raises:
        ValueError: naming the argument, its value and the valid range.
        GenerationCancelled: if ``cancel`` said so.
    """
    if pipeline is None:
        hybrid = load_mini_hybrid(
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            packet_dtype=packet_dtype,
            send_embeddings=send_embeddings,
        )
    else:
        hybrid = HybridPipeline(
            pipeline,
            {},
            num_steps=num_steps,
            scheduler=scheduler,
            packet_dtype=packet_dtype,
            guidance_scale=7.5 if guidance_scale is None else guidance_scale,
            send_embeddings=send_embeddings,
        )
    return hybrid.generate(
        prompts, users, split_points, seed, batching=batching, on_step=on_step, progress=progress, cancel=cancel
    )


def load_mini_hybrid(merge: bool = False, **settings) -> HybridPipeline:
    """The miniature on the edge and its users, each with one vendor's style.

    Args:
        merge: as in ``load_users``.
        settings: as of ``HybridPipeline``.

    Raises:
        ValueError: if a file of weights is missing or damaged.
    """
    from splitpoint.diffusion.mini import GUIDANCE_SCALE, load_mini

    folders = [data_path("models", "users", name) for name in mini_users()]
    for folder in folders:
        read_meta(folder / ADAPTER_FILE)
    edge, users = load_users(load_mini(), folders, merge=merge)
    given = {name: value for name, value in settings.items() if value is not None}
    return HybridPipeline(edge, users, **{"guidance_scale": GUIDANCE_SCALE, **given})


@torch.no_grad()
def decode(pipeline: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, channels, h, w), denoised or not, as pictures (B, 3, H, W) with values in [0, 1]."""
    return family_of(pipeline).decode(latents)


def to_images(pictures: torch.Tensor) -> list[Image.Image]:
    """Pictures (B, 3, H, W) with values in [0, 1] as PIL images."""
    return [Image.fromarray(picture.permute(1, 2, 0).mul(255).round().byte().cpu().numpy()) for picture in pictures]


def _run(
    batch: StepBatch,
    rows: list[Row],
    hand_over: Callable[[], None] | None,
    on_step: OnStep | None,
    title: str,
    progress: bool | None,
    cancel: Cancel | None,
) -> None:
    """The one loop of both phases: rows join at their own step of the run, and leave at their stop."""
    waiting = [row for row in rows if row.remaining]
    if not waiting:
        return
    first, last = min(row.step for row in waiting), max(row.stop for row in waiting)
    starts = {row: row.step for row in waiting}
    names = {row: place for place, row in enumerate(rows)}
    with progress_bar(title, last - first, progress, unit="step") as bar:
        for step in range(first, last):
            if cancel is not None and (cancel.is_set() if isinstance(cancel, Event) else cancel()):
                raise GenerationCancelled(f"cancelled before step {step} of {rows[0].num_steps}")
            batch.admit([row for row in waiting if starts[row] == step])
            tick = batch.step()
            for row in tick.left:
                if row.error is not None:
                    raise row.error
            if hand_over is not None:
                hand_over()
            bar.update()
            if on_step is not None:
                on_step(step + 1, [names[row] for row in tick.rows], tick.latents)


def _run_of(packet: Packet) -> tuple:
    return packet.num_steps, packet.guidance_scale, packet.scheduler, sorted(packet.scheduler_config.items(), key=str)


def check_requests(num_steps: int, prompts, split_points, seeds, users: list[User] | None = None) -> list[list]:
    """Requests as columns of one length, after checking every value.

    Raises:
        ValueError: naming the argument, its value and the valid range.
    """
    columns = {
        "prompts": one_or_many("prompts", prompts),
        "split_points": list(split_points) if _is_many(split_points) else [split_points],
        "seed": list(seeds) if _is_many(seeds) else [seeds],
    }
    if users is not None:
        columns["users"] = users
    lengths = {name: len(column) for name, column in columns.items()}
    if 0 in lengths.values():
        raise ValueError(f"{min(lengths, key=lengths.get)} is empty: at least one request is needed")
    if any(length not in (1, max(lengths.values())) for length in lengths.values()):
        raise ValueError(f"lengths differ: {lengths}; each must be 1 or the number of requests")
    for prompt in columns["prompts"]:
        check_prompt("prompts", prompt)
    for name, most in {"split_points": num_steps, "seed": 2**63 - 1}.items():
        for value in columns[name]:
            whole_number(name, value, 0, most)
        columns[name] = [int(value) for value in columns[name]]
    return [column * (max(lengths.values()) if len(column) == 1 else 1) for column in columns.values()]


def _is_many(values: object) -> bool:
    return hasattr(values, "__len__") and not (hasattr(values, "ndim") and values.ndim == 0)
