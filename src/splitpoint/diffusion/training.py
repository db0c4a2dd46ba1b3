"""What every training here has in common: a budget of time, a learning rate that falls with it, one update."""

import math
import time
from collections.abc import Iterator, Sequence

import torch

from splitpoint.progress import progress_bar


def time_budget(minutes: float, spent: float, progress: bool | None, title: str) -> Iterator[float]:
    """Yield the used share of a time budget until it is spent.

    Args:
        minutes: the budget.
        spent: minutes that were used before, by a run that is resumed.
        progress: True shows a bar, False none; by default one on a terminal and in a notebook.
        title: of the bar.
    """
    start = time.monotonic()
    with progress_bar(title, round(60 * minutes), progress, unit="s", done=round(60 * spent)) as bar:
        while (used := spent + (time.monotonic() - start) / 60) < minutes:
            yield used / minutes
            bar.update(max(0, round(60 * used) - bar.n))


def set_rate(optimizer: torch.optim.Optimizer, peak: float, part: float, steps: int) -> None:
    """Learning rate after ``steps`` updates, a hundred of them to warm up, when ``part`` of the budget is used."""
    rate = peak * min(1.0, (steps + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
    for group in optimizer.param_groups:
        group["lr"] = rate


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor, weights: Sequence[torch.Tensor]) -> None:
    """One step down the gradient, its norm held to 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()


def training_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
