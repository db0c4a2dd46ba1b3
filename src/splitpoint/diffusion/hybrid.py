"""Two models share one denoising run: the edge takes the first steps, the user's device takes the last.

The split point n is the number of LAST steps on the device: 0 is all edge, N is all device. The edge serves all
requests in one batch that each leaves at its own step; what leaves is a ``Packet``; the device goes on from the
packet alone. Works with the miniature and with any pipeline of Stable Diffusion's parts.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image

from splitpoint.diffusion.packet import Packet
from splitpoint.diffusion.users import ADAPTER_FILE, User, adapter_on, load_users, mini_users, model_fingerprint
from splitpoint.files import data_path, read_meta
from splitpoint.progress import progress_bar

BATCHINGS = ("early_exit", "static")
_SCHEDULERS = {  # name: class, and what a deterministic run on unbounded latents needs
    "ddim": (DDIMScheduler, {"clip_sample": False, "thresholding": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "thresholding": False}),
}

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
        pipeline: the edge's cluster-wide model, with Stable Diffusion's parts.
        users: name -> ``User``, as from ``load_users`` or ``load_mini_users``.
        num_steps: denoising steps N of a whole run.
        scheduler: "ddim", "euler" or "dpmsolver++".
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
        pipeline: StableDiffusionPipeline,
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
        most = pipeline.scheduler.config.num_train_timesteps
        if not (1 <= num_steps <= most and num_steps == int(num_steps)):
            raise ValueError(f"num_steps={num_steps!r} must be a whole number in [1, {most}]")
        if packet_dtype not in ("float16", "float32"):
            raise ValueError(f"packet_dtype={packet_dtype!r} must be 'float16' or 'float32'")
        if not 0 <= guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale={guidance_scale!r} must be a finite number of at least 0")
        if max_batch is not None and not (max_batch >= 1 and max_batch == int(max_batch)):
            raise ValueError(f"max_batch={max_batch!r} must be a whole number of at least 1")
        self.pipeline, self.users = pipeline, dict(users)
        self.num_steps, self.guidance_scale = int(num_steps), float(guidance_scale)
        self.scheduler = scheduler
        self.scheduler_config = scheduler_config(pipeline, scheduler, scheduler_options or {})
        self.packet_dtype, self.send_embeddings, self.max_batch = packet_dtype, send_embeddings, max_batch
        self.model = model_fingerprint(pipeline)

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
        if batching not in BATCHINGS:
            raise ValueError(f"batching={batching!r} is not one of {', '.join(BATCHINGS)}")
        keys = [(prompt, seed) if share_runs else i for i, (prompt, seed) in enumerate(zip(prompts, seeds))]
        served = len({key for key, split in zip(keys, split_points) if split < self.num_steps})
        if self.max_batch is not None and served > self.max_batch:
            raise ValueError(f"{served} requests are more than the edge admits: max_batch={self.max_batch}")
        with adapter_on(self.pipeline, None) as pipeline:
            scheduler = _make_scheduler(self.scheduler, self.scheduler_config, self.num_steps, pipeline)
            contexts = _encode(pipeline, prompts, self.guidance_scale)
            rows: dict[object, _Row] = {}
            for key, prompt, seed_, split in zip(keys, prompts, seeds, split_points):
                if split < self.num_steps:
                    noise = starting_noise(pipeline, scheduler, seed_)
                    rows.setdefault(key, _Row(noise, contexts[prompt])).stops.add(self.num_steps - split)
            _denoise(
                pipeline.unet,
                scheduler,
                list(rows.values()),
                self.guidance_scale,
                batching == "static",
                on_step,
                "edge",
                progress,
                cancel,
            )
        return [
            self._packet(prompt, seed_, split, rows.get(key), contexts[prompt])
            for key, prompt, seed_, split in zip(keys, prompts, seeds, split_points)
        ]

    def _packet(self, prompt: str, seed: int, split: int, row: "_Row | None", context: torch.Tensor) -> Packet:
        step = self.num_steps - split
        latent, history = row.taken[step] if step else (None, ())
        packet = Packet(
            prompt,
            seed,
            step,
            self.num_steps,
            self.guidance_scale,
            self.scheduler,
            self.scheduler_config,
            self.model,
            latent,
            history,
            context if self.send_embeddings else None,
        )
        return packet.astype(self.packet_dtype)

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
        if not packets:
            raise ValueError("packets is empty: at least one is needed")
        first = packets[0]
        for packet in packets:
            _check_fits(packet, user)
            if _run_of(packet) != _run_of(first):
                raise ValueError("packets of one batch must agree on num_steps, guidance_scale and scheduler")
        with user.model() as pipeline:
            scheduler = _make_scheduler(first.scheduler, first.scheduler_config, first.num_steps, pipeline)
            contexts = _encode(pipeline, [p.prompt for p in packets if p.embeddings is None], first.guidance_scale)
            rows = [_row_of(packet, pipeline, scheduler, contexts) for packet in packets]
            _denoise(pipeline.unet, scheduler, rows, first.guidance_scale, False, on_step, user.name, progress, cancel)
        return torch.stack([row.taken[first.num_steps][0] for row in rows])

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
        users = [self.user(user) for user in users]
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
        users = [users] if isinstance(users, (str, User)) else list(users)
        users = [self.user(user) for user in users]
        prompts, split_points, seeds, users = check_requests(self.num_steps, prompts, split_points, seed, users)
        watch = {"on_step": on_step, "progress": progress, "cancel": cancel}
        packets = self.edge_phase(prompts, split_points, seeds, batching=batching, **watch)
        packets = [Packet.from_bytes(packet.to_bytes()) for packet in packets]
        latents = [self.device_latents([packet], user, **watch) for packet, user in zip(packets, users)]
        images = [to_images(decode(user.pipeline, latent))[0] for user, latent in zip(users, latents)]
        return HybridOutput(images, packets, torch.cat(latents))

    def noise_levels(self) -> torch.Tensor:
        """Noise per unit of signal in the latent after 0, 1, … N steps, (N + 1,): what a step number stands for."""
        scheduler = _make_scheduler(self.scheduler, self.scheduler_config, self.num_steps, self.pipeline)
        if hasattr(scheduler, "sigmas"):
            return scheduler.sigmas.cpu()
        signal = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps.cpu()], scheduler.final_alpha_cumprod[None]])
        return ((1 - signal) / signal).sqrt()

    def user(self, user: str | User) -> User:
        """The user of a name.

        Raises:
            ValueError: for an unknown name.
        """
        if isinstance(user, User):
            return user
        if user not in self.users:
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
    pipeline: StableDiffusionPipeline | None = None,
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
        scheduler: "ddim", "euler" or "dpmsolver++".
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


def scheduler_config(pipeline: StableDiffusionPipeline, scheduler: str, options: Mapping[str, object] = {}) -> dict:
    """The settings of a scheduler for this pipeline that differ from diffusers' defaults.

    Args:
        pipeline: whose own scheduler's settings are taken over.
        scheduler: "ddim", "euler" or "dpmsolver++".
        options: settings that replace the pipeline's.

    Raises:
        ValueError: for an unknown scheduler or option.
    """
    if scheduler not in _SCHEDULERS:
        raise ValueError(f"scheduler={scheduler!r} is not one of {', '.join(_SCHEDULERS)}")
    kind, needed = _SCHEDULERS[scheduler]
    defaults = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items() if name != "self"}
    for name in options:
        if name not in defaults or name in needed:
            valid = ", ".join(name for name in defaults if name not in needed)
            raise ValueError(f"scheduler_options holds {name!r}; valid for {scheduler!r}: {valid}")
    config = kind.from_config(pipeline.scheduler.config, **{**needed, **options}).config
    return {name: config[name] for name in defaults if config[name] != defaults[name]}


def starting_noise(pipeline: StableDiffusionPipeline, scheduler, seed: int) -> torch.Tensor:
    """The latent before the first step, (channels, height, width): drawn on the CPU so that every device agrees."""
    noise = torch.randn((1, *_latent_shape(pipeline.unet)), generator=torch.Generator().manual_seed(seed))[0]
    return noise.to(**_place(pipeline)) * scheduler.init_noise_sigma


@torch.no_grad()
def decode(pipeline: StableDiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, channels, h, w), denoised or not, as pictures (B, 3, H, W) with values in [0, 1]."""
    vae = pipeline.vae
    pictures = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def to_images(pictures: torch.Tensor) -> list[Image.Image]:
    """Pictures (B, 3, H, W) with values in [0, 1] as PIL images."""
    return [Image.fromarray(picture.permute(1, 2, 0).mul(255).round().byte().cpu().numpy()) for picture in pictures]


@dataclass(eq=False)
class _Row:
    """One line of a batch: where it starts, where copies of it are taken, and what a multistep scheduler needs."""

    latent: torch.Tensor
    context: torch.Tensor  # (1 or 2, tokens, width)
    start: int = 0
    history: tuple[torch.Tensor, ...] = ()
    stops: set[int] = field(default_factory=set)
    taken: dict[int, tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = field(default_factory=dict)


def _denoise(
    unet,
    scheduler,
    rows: list[_Row],
    guidance_scale: float,
    carry_all: bool,
    on_step: OnStep | None,
    title: str,
    progress: bool | None,
    cancel: Cancel | None,
) -> None:
    """The one loop of both phases: rows join at ``start``, are copied at each of ``stops``, leave after the last."""
    for row in rows:
        if row.start in row.stops:
            row.taken[row.start] = (row.latent, row.history)
    moving = [row for row in rows if max(row.stops) > row.start]
    if not moving:
        return
    first, last = min(row.start for row in moving), max(max(row.stops) for row in moving)
    until = {id(row): last if carry_all else max(row.stops) for row in moving}
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    active: list[_Row] = []
    latents = context = torch.empty(0)
    with progress_bar(title, last - first, progress, unit="step") as bar:
        for step in range(first, last):
            if cancel is not None and (cancel.is_set() if isinstance(cancel, Event) else cancel()):
                raise GenerationCancelled(f"cancelled before step {step} of {scheduler.num_inference_steps}")
            members = [row for row in moving if row.start <= step < until[id(row)]]
            if members != active:
                for place, row in enumerate(active):
                    row.latent, row.history = latents[place], _history(scheduler, place)
                latents, context = _stack(scheduler, members, step)
                active, names = members, [rows.index(row) for row in members]
            timestep = scheduler.timesteps[step]
            latents = scheduler.step(
                _predict(unet, scheduler, latents, timestep, context, guidance_scale),
                timestep,
                latents,
                return_dict=False,
            )[0]
            for place, row in enumerate(active):
                if step + 1 in row.stops:
                    row.taken[step + 1] = (latents[place].clone(), _history(scheduler, place))
            bar.update()
            if on_step is not None:
                on_step(step + 1, names, latents)


def _predict(unet, scheduler, latents, timestep, context, guidance_scale: float) -> torch.Tensor:
    guided = guidance_scale > 1
    inputs = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, timestep)
    predicted = unet(inputs, timestep, encoder_hidden_states=context, return_dict=False)[0]
    if not guided:
        return predicted
    without, with_prompt = predicted.chunk(2)
    return without + guidance_scale * (with_prompt - without)


def _stack(scheduler, rows: list[_Row], step: int) -> tuple[torch.Tensor, torch.Tensor]:
    if hasattr(scheduler, "model_outputs"):
        order = scheduler.config.solver_order
        history = [torch.stack(outputs) for outputs in zip(*(row.history for row in rows), strict=True)]
        scheduler.model_outputs = [None] * (order - len(history)) + history
        scheduler.lower_order_nums = min(step, order)
    context = torch.stack([row.context for row in rows], dim=1).flip(0)  # the empty prompt's half first
    return torch.stack([row.latent for row in rows]), context.flatten(0, 1)


def _history(scheduler, place: int) -> tuple[torch.Tensor, ...]:
    outputs = getattr(scheduler, "model_outputs", [])[1:]  # the oldest is dropped by the next step anyway
    return tuple(output[place].clone() for output in outputs if output is not None)


def _row_of(packet: Packet, pipeline, scheduler, contexts: dict[str, torch.Tensor]) -> _Row:
    here = _place(pipeline)
    latent = starting_noise(pipeline, scheduler, packet.seed) if packet.latent is None else packet.latent.to(**here)
    context = contexts[packet.prompt] if packet.embeddings is None else packet.embeddings.to(**here)
    return _Row(latent, context, packet.step, tuple(item.to(**here) for item in packet.history), {packet.num_steps})


def _run_of(packet: Packet) -> tuple:
    return packet.num_steps, packet.guidance_scale, packet.scheduler, sorted(packet.scheduler_config.items(), key=str)


def _check_fits(packet: Packet, user: User) -> None:
    if packet.model != model_fingerprint(user.pipeline):
        raise ValueError(
            f"packet is from another model: its fingerprint is {packet.model}, that of user "
            f"{user.name!r} is {model_fingerprint(user.pipeline)}"
        )
    shape = _latent_shape(user.pipeline.unet)
    if any(tuple(tensor.shape) != shape for tensor in (packet.latent, *packet.history) if tensor is not None):
        raise ValueError(f"packet's latent has another shape than {shape}, which user {user.name!r} needs")
    width, rows = user.pipeline.unet.config.cross_attention_dim, 2 if packet.guidance_scale > 1 else 1
    sent = packet.embeddings
    if sent is not None and (sent.ndim != 3 or sent.shape[0] != rows or sent.shape[2] != width):
        raise ValueError(f"packet's embeddings have shape {tuple(sent.shape)}; ({rows}, tokens, {width}) is needed")
    if packet.scheduler not in _SCHEDULERS:
        raise ValueError(f"packet's scheduler={packet.scheduler!r} is not one of {', '.join(_SCHEDULERS)}")


def check_requests(num_steps: int, prompts, split_points, seeds, users: list[User] | None = None) -> list[list]:
    """Requests as columns of one length, after checking every value.

    Raises:
        ValueError: naming the argument, its value and the valid range.
    """
    columns = {
        "prompts": [prompts] if isinstance(prompts, str) else list(prompts),
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
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompts holds {prompt!r}: every prompt must be a text that is not empty")
    for name, (least, most) in {"split_points": (0, num_steps), "seed": (0, 2**63 - 1)}.items():
        for value in columns[name]:
            if not (least <= value <= most and value == int(value)):
                raise ValueError(f"{name} holds {value!r}: whole numbers in [{least}, {most}] are needed")
        columns[name] = [int(value) for value in columns[name]]
    return [column * (max(lengths.values()) if len(column) == 1 else 1) for column in columns.values()]


def _is_many(values: object) -> bool:
    return hasattr(values, "__len__") and not (hasattr(values, "ndim") and values.ndim == 0)


def _encode(pipeline: StableDiffusionPipeline, prompts: list[str], guidance_scale: float) -> dict[str, torch.Tensor]:
    """Each prompt's embeddings, (1 or 2, tokens, width); one by one, so that edge and device agree to the last bit."""
    here = _place(pipeline)
    text = lambda prompt: pipeline.encode_prompt(prompt, here["device"], 1, False)[0]
    prompts = list(dict.fromkeys(prompts))
    empty = [text("")] if guidance_scale > 1 and prompts else []
    return {prompt: torch.cat([text(prompt), *empty]).to(**here) for prompt in prompts}


def _make_scheduler(name: str, config: dict, num_steps: int, pipeline: StableDiffusionPipeline):
    scheduler = _SCHEDULERS[name][0](**config)
    scheduler.set_timesteps(num_steps, device=_place(pipeline)["device"])
    return scheduler


def _place(pipeline: StableDiffusionPipeline) -> dict:
    """Where the denoiser's numbers live and of which type; diffusers' own properties walk all layers for it."""
    weight = next(pipeline.unet.parameters())
    return {"device": weight.device, "dtype": weight.dtype}


def _latent_shape(unet) -> tuple[int, int, int]:
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return unet.config.in_channels, height, width
