"""A denoising run as a table: for each step, the few numbers with which a sampler moves a latent one step on.

DDIM, Euler, DPM-Solver++ (first and second order) and flow matching follow one rule, linear in what the network says:

    clean     = (p·x - q·output) / r                the finished latent as far as this step can tell
    direction = (u·output + w·x + z·clean) / s      the noise, or the slope of the path
    next x    = a·x + b·clean + c·direction + d·(k·(clean - previous clean))

so rows of one batch may stand at different steps of different samplers, and no scheduler object is in the loop. Its
numbers are read from diffusers' own schedulers, in the order in which diffusers adds and multiplies: on a processor the
latents are diffusers' own to the last bit (Euler with velocity prediction: up to rounding).
"""

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from splitpoint.checks import a_mapping, one_of, whole_number

SAMPLERS = {  # name: diffusers' class, and what a deterministic run on unbounded latents needs
    "ddim": (DDIMScheduler, {"clip_sample": False, "thresholding": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "thresholding": False}),
    "flow_euler": (FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": False, "invert_sigmas": False}),
}
MAX_STEPS = 1000  # of one run; the models of this room were trained on as many noise levels


class Rule(NamedTuple):
    """The numbers of one step, named as in the formulas above; each a tensor that broadcasts over latents."""

    timestep: torch.Tensor  # what the network is told
    scale: torch.Tensor  # by which its input is divided
    p: torch.Tensor
    q: torch.Tensor
    r: torch.Tensor
    u: torch.Tensor
    w: torch.Tensor
    z: torch.Tensor
    s: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    d: torch.Tensor
    k: torch.Tensor


@dataclass(frozen=True, eq=False)
class StepTable:
    """One run of N steps.

    Attributes:
        values: (N, 14) float32, a ``Rule`` in each row.
        start_scale: by which the starting noise is multiplied.
        noise_levels: (N + 1,) noise per unit of signal in the latent after 0, 1, … N steps.
        remembers: (N + 1,) whether the next step needs the previous step's ``clean``.
    """

    values: torch.Tensor
    start_scale: float
    noise_levels: torch.Tensor
    remembers: tuple[bool, ...]


def rule_of(values: torch.Tensor, dimensions: int) -> Rule:
    """Rows of tables as a ``Rule``: (B, 14) -> 14 tensors (B, 1, 1, …) for latents of so many dimensions."""
    return Rule(*(column.reshape(-1, *[1] * (dimensions - 1)) for column in values.unbind(1)))


def advance(
    latents: torch.Tensor, output: torch.Tensor, previous: torch.Tensor | None, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row one step on, each by its own rule.

    Args:
        latents: (B, channels, height, width).
        output: of the network, guidance applied, same shape.
        previous: what this function returned as ``clean`` one step before; None if no row needs it.
        rule: as from ``rule_of``.

    Returns:
        The next latents in the type of ``latents``, and ``clean``, the estimate of the finished ones.
    """
    clean = (rule.p * latents - rule.q * output) / rule.r
    direction = (rule.u * output + rule.w * latents + rule.z * clean) / rule.s
    following = rule.a * latents + rule.b * clean + rule.c * direction
    if previous is not None:
        following = following + rule.d * (rule.k * (clean - previous))
    return following.to(latents.dtype), clean


def scheduler_settings(sampler: str, own: Mapping, options: Mapping[str, object] | None = None) -> dict:
    """The settings of a sampler that differ from diffusers' defaults.

    Args:
        sampler: one of ``SAMPLERS``.
        own: settings of the pipeline's own scheduler, which are taken over where they fit.
        options: settings that replace those.

    Raises:
        ValueError: for an unknown sampler or option.
    """
    one_of("sampler", sampler, SAMPLERS)
    options = a_mapping("options", {} if options is None else options)
    kind, needed = SAMPLERS[sampler]
    defaults = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items() if name != "self"}
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"scheduler_options: {name}={value} is not a finite number")
        if name not in defaults or name in needed:
            valid = ", ".join(name for name in defaults if name not in needed)
            raise ValueError(f"scheduler_options holds {name!r}; valid for {sampler!r}: {valid}")
    try:
        config = kind.from_config(dict(own), **{**options, **needed}).config
    except Exception as error:  # of many kinds, in diffusers' own words
        raise ValueError(f"scheduler_options={dict(options)!r} are not valid for {sampler!r}: {error}") from error
    return {name: config[name] for name in defaults if config[name] != defaults[name]}


def step_table(sampler: str, settings: Mapping[str, object], num_steps: int) -> StepTable:
    """The table of one run.

    Args:
        sampler: one of ``SAMPLERS``.
        settings: as from ``scheduler_settings``; diffusers' defaults where they say nothing.
        num_steps: denoising steps N.

    Raises:
        ValueError: for an unknown sampler, or settings that diffusers refuses or that give no finite numbers.
    """
    one_of("sampler", sampler, SAMPLERS)
    whole_number("num_steps", num_steps, 1, MAX_STEPS)
    return _table(sampler, json.dumps(dict(settings), sort_keys=True, default=list), int(num_steps))


@lru_cache(maxsize=256)
def _table(sampler: str, settings: str, num_steps: int) -> StepTable:
    kind, needed = SAMPLERS[sampler]
    try:
        scheduler = kind(**{**json.loads(settings), **needed})
        scheduler.set_timesteps(num_steps)
        columns = _RULES[sampler](scheduler)
    except Exception as error:
        raise ValueError(f"scheduler {sampler!r} with {settings} gives no run of {num_steps} steps: {error}") from error
    neutral = dict.fromkeys(Rule._fields, 0.0) | {"scale": 1.0, "r": 1.0, "s": 1.0}
    columns = {**neutral, "timestep": scheduler.timesteps.float(), **columns}
    values = torch.stack([torch.as_tensor(columns[name]).float().expand(num_steps) for name in Rule._fields], dim=1)
    if not values.isfinite().all():
        step = int((~values.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"scheduler {sampler!r} with {settings} divides by zero at step {step} of {num_steps}")
    remembers = (False, *(values[1:, Rule._fields.index("d")] != 0).tolist(), False)
    return StepTable(values, float(getattr(scheduler, "init_noise_sigma", 1.0)), _noise_levels(scheduler), remembers)


def _noise_levels(scheduler) -> torch.Tensor:
    if isinstance(scheduler, DDIMScheduler):
        signal = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], _alphas_after(scheduler)[-1:]])
        return ((1 - signal) / signal).sqrt()
    straight = isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or getattr(
        scheduler.config, "use_flow_sigmas", False
    )
    return scheduler.sigmas / (1 - scheduler.sigmas) if straight else scheduler.sigmas


def _alphas_after(scheduler: DDIMScheduler) -> torch.Tensor:
    """Share of signal after each step, (N,)."""
    after = scheduler.timesteps - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    return torch.where(after >= 0, scheduler.alphas_cumprod[after.clamp(min=0)], scheduler.final_alpha_cumprod)


def _clean_from(prediction: str, signal: torch.Tensor, noise: torch.Tensor) -> dict:
    """How the finished latent follows from x = signal·clean + noise·epsilon and the network's output."""
    if prediction == "epsilon":
        return {"p": 1.0, "q": noise, "r": signal}
    if prediction == "v_prediction":
        return {"p": signal, "q": noise}
    if prediction == "sample":
        return {"p": 0.0, "q": -1.0}
    if prediction == "flow_prediction":
        return {"p": 1.0, "q": noise}
    raise ValueError(
        f"prediction_type={prediction!r} is unknown; there are: epsilon, v_prediction, sample, flow_prediction"
    )


def _ddim(scheduler: DDIMScheduler) -> dict:
    now, after = scheduler.alphas_cumprod[scheduler.timesteps], _alphas_after(scheduler)
    signal, noise = now**0.5, (1 - now) ** 0.5
    prediction = scheduler.config.prediction_type
    direction = {
        "epsilon": {"u": 1.0},
        "v_prediction": {"u": signal, "w": noise},
        "sample": {"w": 1.0, "z": -signal, "s": noise},
    }
    return _clean_from(prediction, signal, noise) | direction[prediction] | {"b": after**0.5, "c": (1 - after) ** 0.5}


def _euler(scheduler: EulerDiscreteScheduler) -> dict:
    sigma = scheduler.sigmas[:-1]
    columns = _clean_from(scheduler.config.prediction_type, torch.ones(()), sigma)
    if scheduler.config.prediction_type == "v_prediction":
        columns = {"p": 1 / (sigma**2 + 1), "q": sigma / (sigma**2 + 1) ** 0.5}
    slope = {"w": 1.0, "z": -1.0, "s": sigma, "a": 1.0, "c": scheduler.sigmas.diff()}
    return columns | slope | {"scale": (sigma**2 + 1) ** 0.5}


def _dpmsolver(scheduler: DPMSolverMultistepScheduler) -> dict:
    config, steps, sigmas = scheduler.config, len(scheduler.timesteps), scheduler.sigmas
    if config.solver_order not in (1, 2):
        raise ValueError(f"solver_order={config.solver_order!r} is not 1 or 2")
    if config.use_flow_sigmas:
        signal, noise = 1 - sigmas, sigmas
    else:
        signal = 1 / ((sigmas**2 + 1) ** 0.5)
        noise = sigmas * signal
    level = signal.log() - noise.log()  # half the log of the signal-to-noise ratio
    stride = level.diff()
    change = signal[1:] * (torch.exp(-stride) - 1.0)
    heun = {"midpoint": -0.5 * change, "heun": signal[1:] * ((torch.exp(-stride) - 1.0) / stride + 1.0)}
    few = config.lower_order_final and steps < 15
    first_order_end = config.euler_at_final or few or config.final_sigmas_type == "zero"
    second = torch.arange(steps) >= (1 if config.solver_order == 2 else steps)
    second[-1] &= not first_order_end
    ratio = torch.cat([stride[:1], stride[:-1]]) / stride
    none = torch.zeros(steps)
    return _clean_from(config.prediction_type, signal[:-1], noise[:-1]) | {
        "a": noise[1:] / noise[:-1],
        "b": -change,
        "d": torch.where(second, heun[config.solver_type], none),
        "k": torch.where(second, 1.0 / ratio, none),
    }


def _flow_euler(scheduler: FlowMatchEulerDiscreteScheduler) -> dict:
    return {"p": 1.0, "q": scheduler.sigmas[:-1], "u": 1.0, "a": 1.0, "c": scheduler.sigmas.diff()}


_RULES = {"ddim": _ddim, "euler": _euler, "dpmsolver++": _dpmsolver, "flow_euler": _flow_euler}
