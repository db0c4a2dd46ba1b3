"""The one training loop of this room: counted in steps, with a running mean of the weights and safe checkpoints.

A step means the same on every machine, so the same seed learns the same on a fast one and on a slow one; a budget of
minutes may cut a run short, and a checkpoint goes on from there. On a CUDA device the random numbers are drawn there,
and loss and gradients are one CUDA graph: small networks would otherwise wait for Python.
"""

import hashlib
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from splitpoint.checks import finite_number, whole_number
from splitpoint.files import write_atomically
from splitpoint.progress import progress_bar

WARMUP_STEPS = 100
CHECKPOINT_EVERY_S = 180
LOSSES_AT_ONCE = 50  # read from a GPU together: each reading waits for all that it has to do

Loss = Callable[[torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Run:
    """How a training is carried through; nothing here changes what a finished one has learned.

    Attributes:
        checkpoint: safetensors file that is written every three minutes, and at the end.
        resume: go on from ``checkpoint``, if it is there.
        minutes: a budget that cuts the training short, checkpoint in hand.
        progress: True shows a bar, False none; by default one on a terminal and in a notebook.
    """

    checkpoint: Path | None = None
    resume: bool = False
    minutes: float = math.inf
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.minutes != math.inf:
            finite_number("minutes", self.minutes, 0, open_end=True)


def fit(
    loss: Loss,
    weights: Mapping[str, torch.nn.Parameter],
    steps: int,
    *,
    learning_rate: float,
    weight_decay: float = 1e-3,
    mean_decay: float | None = None,
    seed: int = 0,
    title: str = "training",
    run: Run = Run(),
) -> list[float]:
    """Train weights by AdamW, the learning rate rising for a hundred steps and then falling to zero as a cosine.

    Args:
        loss: draws a batch with the generator that it is given, on ``drawing_device``, and returns a scalar.
        weights: name -> weight, all on one device; trained in place.
        steps: updates.
        learning_rate: its peak.
        weight_decay: of AdamW.
        mean_decay: of a running mean of the weights, which they end as; None keeps none.
        seed: of the generator.
        title: of the progress bar.
        run: checkpoint, budget and bar.

    Returns:
        the loss of every step; fewer than ``steps`` where the budget cut the training.

    Raises:
        ValueError: for a number out of range, or a checkpoint that is damaged or of another architecture.
    """
    whole_number("steps", steps, 1)
    finite_number("learning_rate", learning_rate, 0, open_end=True)
    trained = list(weights.values())
    device = trained[0].device
    on_gpu = device.type == "cuda"
    generator = torch.Generator(drawing_device(device)).manual_seed(seed)
    optimizer = torch.optim.AdamW(trained, learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=on_gpu)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(WARMUP_STEPS, steps // 2), steps)
    mean = None if mean_decay is None else EMAModel(trained, decay=mean_decay, foreach=True)
    losses: list[float] = []
    if run.resume and run.checkpoint is not None and run.checkpoint.exists():
        _restore(load_state(run.checkpoint), run.checkpoint.name, weights, optimizer, schedule, mean, generator, losses)

    unread: list[torch.Tensor] = []

    def read() -> None:
        for value in torch.stack(unread).cpu().tolist() if unread else ():
            if not math.isfinite(value):
                raise RuntimeError(f"{title}: no finite loss after {len(losses)} steps; {learning_rate=} is too high")
            losses.append(value)
        unread.clear()

    def keep() -> None:
        read()
        if run.checkpoint is not None and losses:
            save_state(run.checkpoint, _state(weights, optimizer, mean, generator, losses))

    def gradients() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss(generator)
        value.backward()
        return value.detach()

    step = _captured(gradients, generator, optimizer, title) if on_gpu and len(losses) < steps else gradients
    start = saved = time.monotonic()
    with progress_bar(title, steps, run.progress, unit="step", done=len(losses)) as bar:
        while len(losses) + len(unread) < steps and time.monotonic() - start < 60 * run.minutes:
            unread.append(step().clone())
            if not on_gpu or len(unread) == LOSSES_AT_ONCE:
                read()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            if mean is not None:
                mean.step(trained)
            bar.update()
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                keep()
                saved = time.monotonic()
    keep()
    if mean is not None:
        mean.copy_to(trained)
    return losses


def _captured(gradients: Callable, generator: torch.Generator, optimizer, title: str) -> Callable[[], torch.Tensor]:
    """Loss and gradients as one CUDA graph, which draws new random numbers at every replay; as they are if that fails.

    A graph keeps its gradients in its own memory: they are written anew by every replay, and never set to None.
    """
    before, side = generator.get_state(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # kernels are chosen and buffers moved before the capture
            gradients()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph):
            value = gradients()
    except RuntimeError as error:
        torch.cuda.synchronize()
        warnings.warn(f"{title}: its step is no CUDA graph, and slower for it ({error})", stacklevel=3)
        return gradients
    finally:
        generator.set_state(before)  # what was tried beforehand is no part of the training

    def replay() -> torch.Tensor:
        graph.replay()
        return value

    return replay


def save_state(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors with a checksum in the header: the old file or the new one, never a half."""
    whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_atomically(path, save(whole, {"sha256": _checksum(whole)}))


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors that ``save_state`` wrote.

    Raises:
        ValueError: if the file was changed, damaged, or not written by ``save_state``.
    """
    try:
        with safe_open(path, "pt") as file:
            state, meta = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(f"checkpoint {path.name} is unreadable; remove it to start anew") from error
    if _checksum(state) != meta.get("sha256"):
        raise ValueError(f"checkpoint {path.name} does not match its checksum: damaged; remove it to start anew")
    return state


def noised(
    schedule, latents: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents with noise on them, at levels spread evenly over the batch.

    Args:
        schedule: a diffusers scheduler; says whether noise or velocity is to be predicted.
        latents: (B, channels, height, width).
        generator: of the noise and the levels, on the latents' device.

    Returns:
        noisy latents and what a model is to predict from them, both of the latents' shape, and the steps (B,).
    """
    batch, most = len(latents), schedule.config.num_train_timesteps
    device = latents.device
    noise = torch.randn(latents.shape, generator=generator, device=device)
    # one in each of B equal parts
    spread = (torch.arange(batch, device=device) + torch.rand(batch, generator=generator, device=device)) / batch
    t = (spread * most).long().clamp(max=most - 1)
    predicts_noise = schedule.config.prediction_type == "epsilon"
    target = noise if predicts_noise else schedule.get_velocity(latents, noise, t)
    return schedule.add_noise(latents, noise, t), target, t


def denoising_loss(
    unet, schedule, latents: torch.Tensor, context: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Mean squared error of what a U-Net predicts from latents with noise on them, a scalar.

    Args:
        unet: the network.
        schedule: see ``noised``.
        latents: clean, (B, channels, height, width), on ``drawing_device``.
        context: of the prompts, (B, tokens, width), on the network's device.
        generator: of the noise and the levels.
    """
    noisy, target, t = noised(schedule, latents, generator)
    device = unet.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device)):
        guess = unet(noisy.to(device, memory_format=torch.channels_last), t.to(device), context).sample
    return (guess.float() - target.to(device)).square().mean()


def writable_folder(name: str, folder: Path) -> None:
    """Make a folder that a training is to fill, and see that it can be, before the work.

    Raises:
        ValueError: if it is a file, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{name}={str(folder)!r} is not a folder that can be written: {error.strerror}") from error


def training_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def drawing_device(device: torch.device) -> torch.device:
    """Where a batch is drawn: on a CUDA device itself, for any other on the processor."""
    return device if device.type == "cuda" else torch.device("cpu")


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def _checksum(state: Mapping[str, torch.Tensor]) -> str:
    return hashlib.sha256(save(dict(state))).hexdigest()


def _state(weights: Mapping, optimizer, mean: EMAModel | None, generator, losses: list[float]) -> dict:
    state = {"generator": generator.get_state(), "losses": torch.tensor(losses, dtype=torch.float64)}
    for i, (name, weight) in enumerate(weights.items()):
        state[f"weight.{name}"] = weight
        state |= {f"{moment}.{name}": value for moment, value in optimizer.state[weight].items()}
        if mean is not None:
            state[f"mean.{name}"] = mean.shadow_params[i]
    return state


def _restore(state: dict, file: str, weights: Mapping, optimizer, schedule, mean, generator, losses: list) -> None:
    needed = ["weight", "step", "exp_avg", "exp_avg_sq", *(["mean"] if mean is not None else [])]
    if state["generator"].numel() != generator.get_state().numel():
        raise ValueError(f"checkpoint {file} was made on another kind of device than {generator.device.type}")
    for name, weight in weights.items():
        parts = [state.get(f"{kind}.{name}") for kind in needed]
        if any(part is None or (kind != "step" and part.shape != weight.shape) for kind, part in zip(needed, parts)):
            raise ValueError(
                f"checkpoint {file} is of another architecture: {name} does not fit; "
                "train into an empty folder or give the same size"
            )
    for i, (name, weight) in enumerate(weights.items()):
        weight.data.copy_(state[f"weight.{name}"])
        moments = {key: state[f"{key}.{name}"].to(weight.device) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": state[f"step.{name}"], **moments}
        if mean is not None:
            mean.shadow_params[i].copy_(state[f"mean.{name}"])
    generator.set_state(state["generator"])
    losses.extend(state["losses"].tolist())
    if mean is not None:
        mean.optimization_step = len(losses)
    schedule.last_epoch = len(losses)
    for group, base, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(len(losses))
