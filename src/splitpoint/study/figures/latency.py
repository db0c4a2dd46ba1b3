"""Figures of measured latency: curves in, axes out."""

import matplotlib.pyplot as plt
import numpy as np

from splitpoint.offloading import confidence_band
from splitpoint.offloading.fits import fit_two_piece, line_error
from splitpoint.offloading.hardware import LARGEST_BATCH, Curve
from splitpoint.study.figures.style import numbered_style


def latency_curves(curves: dict[str, Curve], max_fit: int = LARGEST_BATCH, ax: plt.Axes | None = None) -> plt.Axes:
    """Every repeat as a faint dot, medians as markers, the line through the medians up to ``max_fit`` and its band."""
    ax = ax or plt.subplots()[1]
    for i, (name, curve) in enumerate(curves.items()):
        style = numbered_style(i)
        colour = style["color"]
        sizes, medians = curve.medians()
        fit = curve.fit(max_fit)
        reach = np.linspace(0, sizes.max(), 100)
        low, high = confidence_band(fit, reach)
        ax.scatter(curve.batch, 1e3 * curve.seconds, s=4, color=colour, alpha=0.15, lw=0)
        ax.plot(
            sizes,
            1e3 * medians,
            ms=5,
            markeredgecolor="black",
            markeredgewidth=0.4,
            **style | {"ls": ""},
            label=f"{name}: {1e3 * fit.model.slope_s:.3g}·b {1e3 * fit.model.intercept_s:+.3g}",
        )
        ax.plot(reach, 1e3 * fit.model.step_latency_s(reach), lw=1.2, **style | {"marker": ""})
        ax.fill_between(reach, 1e3 * low, 1e3 * high, color=colour, alpha=0.15, lw=0)
    tallest = max(1e3 * np.median(c.seconds[c.batch == c.batch.max()]) for c in curves.values())
    ax.set(xlabel="batch size (requests)", ylabel="one denoising step (ms)", xlim=(0, None), ylim=(0, 1.25 * tallest))
    ax.legend(title="fitted line k·b + h (ms)")
    return ax


def line_residuals(curves: dict[str, Curve], max_fit: int = LARGEST_BATCH, ax: plt.Axes | None = None) -> plt.Axes:
    """How far each line is off at the measured batches, in percent; shaded: batches it was fitted to."""
    ax = ax or plt.subplots()[1]
    for i, (name, curve) in enumerate(curves.items()):
        sizes, medians = curve.medians()
        error = line_error(curve.fit(max_fit).model, sizes, medians)
        ax.plot(sizes, 100 * error, lw=1.2, label=name, **numbered_style(i))
    ax.axvspan(1, max_fit, color="0.92", zorder=0)
    ax.axhline(0, color="0.4", lw=0.8)
    ax.set(xlabel="batch size (requests)", ylabel="line minus measured (%)")
    ax.legend()
    return ax


def bent_line(curve: Curve, max_fit: int = LARGEST_BATCH, ax: plt.Axes | None = None) -> plt.Axes:
    """Medians of one curve, its straight line and its line with a bend."""
    ax = ax or plt.subplots()[1]
    sizes, medians = curve.medians()
    reach, fit, bent = np.linspace(1, sizes.max(), 200), curve.fit(max_fit), fit_two_piece(sizes, medians)
    ax.plot(sizes, 1e3 * medians, "o", color="black", label="measured median")
    ax.plot(reach, 1e3 * fit.model.step_latency_s(reach), "-", label=f"line, batch 1–{max_fit}")
    ax.plot(reach, 1e3 * bent.step_latency_s(reach), "--", label=f"two pieces, bend at {bent.bend:g}")
    ax.set(xlabel="batch size (requests)", ylabel="one denoising step (ms)", xlim=(0, None), ylim=(0, None))
    ax.legend()
    return ax
