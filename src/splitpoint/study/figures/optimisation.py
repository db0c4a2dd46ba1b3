"""Figures of the notebooks on optimisation: the inner problem's shape, gains, batches, solvers compared."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from splitpoint.offloading import Instance, LatencyModel, SystemParameters, grant_gains, optimal_split
from splitpoint.offloading.split import grant_gain
from splitpoint.study.figures.style import COLOURS, mean_interval, numbered_style


def objective_lines(
    parameters: SystemParameters,
    edge: LatencyModel,
    device_step_s: float,
    alpha: float,
    batch_sizes: Sequence[int],
    ax: plt.Axes | None = None,
) -> plt.Axes:
    """What granting one user is worth against its split point, a line a batch size; a marker at each maximum."""
    ax = ax or plt.subplots()[1]
    split = np.linspace(parameters.min_split, parameters.num_steps, 401)
    for i, batch in enumerate(batch_sizes):
        saving = float(device_step_s - edge.step_latency_s(batch))
        best = float(optimal_split(alpha, saving, parameters))

        def gain(n):
            return grant_gain(alpha, n, saving, batch, parameters)

        style = numbered_style(i)
        ax.plot(split, gain(split), lw=1.4, label=f"batch {batch}", **style | {"marker": ""})
        ax.plot(best, gain(best), ms=8, markeredgecolor="black", zorder=3, **style | {"ls": ""})
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(xlabel="split point: last steps on the device", ylabel="gain of being granted (s)")
    return ax


def objective_panels(
    parameters: SystemParameters,
    edge: LatencyModel,
    device_step_s: float,
    alphas: Sequence[float],
    batch_sizes: Sequence[int] = (1, 6, 12, 18),
) -> plt.Figure:
    """``objective_lines`` for several preferences, side by side."""
    figure, axes = plt.subplots(1, len(alphas), figsize=(3.2 * len(alphas), 3.4))
    for ax, alpha in zip(axes, alphas):
        objective_lines(parameters, edge, device_step_s, alpha, batch_sizes, ax)
        ax.set(title=f"α = {alpha:g} s", ylabel=ax.get_ylabel() if ax is axes[0] else "")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="outside upper center")
    return figure


def objective_slider(parameters: SystemParameters, edge: LatencyModel, device_step_s: float):
    """Sliders for preference and batch size over ``objective_lines`` (needs a running kernel)."""
    import ipywidgets

    def draw(alpha: float, batch: int):
        ax = objective_lines(parameters, edge, device_step_s, alpha, (batch,))
        saving = float(device_step_s - edge.step_latency_s(batch))
        best = float(optimal_split(alpha, saving, parameters))
        top = float(grant_gain(alpha, best, saving, batch, parameters))
        ax.set(
            title=f"best split point {best:.1f}, gain {top:.1f} s", ylim=(top - 40, top + 5)
        )  # the top stays in sight
        plt.show()

    return ipywidgets.interactive(
        draw,
        alpha=ipywidgets.FloatLogSlider(50, base=10, min=0, max=3, description="α (s)", readout_format=".0f"),
        batch=ipywidgets.IntSlider(6, 1, 18, description="batch"),
    )


def tangents(parameters: SystemParameters, points: Sequence[float], ax: plt.Axes | None = None) -> plt.Axes:
    """The accuracy curve with tangents at ``points``: above its midpoint it lies below all of them."""
    ax = ax or plt.subplots()[1]
    curve, split = parameters.accuracy, np.linspace(0, parameters.num_steps, 401)
    ax.axvspan(0, curve.midpoint, color="0.92", zorder=0, label="convex part, $n < b$")
    for i, point in enumerate(points):
        level = curve.pai(point)
        line = level + curve.steepness * level * (1 - level) * (split - point)
        right = split >= curve.midpoint
        ax.plot(split[right], line[right], color=COLOURS[0], lw=0.9, label=None if i else "tangents")
        ax.plot(point, level, "o", color=COLOURS[0], ms=4)
    ax.plot(split, curve.pai(split), color="black", lw=1.8, label="accuracy index A(n)")
    ax.axvline(parameters.min_split, color=COLOURS[1], ls="--", label="$n_{min}$")
    ax.set(xlabel="split point: last steps on the device", ylabel="accuracy index (PAI)", ylim=(0, 1.25))
    ax.legend(loc="upper left")
    return ax


def totals_by_batch(instances: dict[str, Instance], ax: plt.Axes | None = None) -> plt.Axes:
    """Gain of the best set of each size over all-local, a line an instance; a star at the optimum."""
    ax = ax or plt.subplots()[1]
    for i, (name, instance) in enumerate(instances.items()):
        sizes = np.arange(1, instance.largest_batch + 1)
        descending = -np.sort(-grant_gains(instance, sizes)[0], axis=1)
        totals = np.array([0.0, *(row[:size].sum() for size, row in zip(sizes, descending))])
        style = numbered_style(i)
        ax.plot(range(len(totals)), totals, ms=4, label=name, **style)
        ax.plot(totals.argmax(), totals.max(), "*", ms=15, color=style["color"], markeredgecolor="black", zorder=3)
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(
        xlabel="batch size $B$ (users granted)",
        ylabel="gain of the best set of that size (s)",
        xticks=range(0, len(totals), 2),
    )
    ax.legend()
    return ax


def gain_map(instance: Instance, sets: dict[str, np.ndarray] | None = None, ax: plt.Axes | None = None) -> plt.Axes:
    """Gain of each user at each batch size, as numbers on colours.

    Args:
        instance: the window.
        sets: ``{name: granted (U,)}``, each marked in the row of its own size; left out, the top ``B`` of every row.
    """
    sizes = np.arange(1, instance.largest_batch + 1)
    gains, _ = grant_gains(instance, sizes)
    ax = ax or plt.subplots(figsize=(0.62 * instance.num_users + 2.2, 0.34 * len(sizes) + 1.6))[1]
    sns.heatmap(
        gains.round(1) + 0.0,
        center=0,
        cmap="RdBu",
        annot=True,
        fmt=".1f",
        ax=ax,
        annot_kws={"size": 7},
        xticklabels=range(instance.num_users),
        yticklabels=sizes,
        linewidths=0.5,
        cbar_kws={"label": "gain (s)"},
    )
    top = {"largest gains of the row": None}
    for (name, granted), colour, inset in zip((sets or top).items(), ("black", "#D55E00"), (0.06, 0.16)):
        rows = range(len(sizes)) if granted is None else [int(granted.sum()) - 1]
        for row in rows:
            users = np.argsort(-gains[row])[: row + 1] if granted is None else np.flatnonzero(granted)
            for user in users:
                ax.add_patch(
                    plt.Rectangle(
                        (user + inset, row + inset), 1 - 2 * inset, 1 - 2 * inset, fill=False, edgecolor=colour, lw=1.6
                    )
                )
        ax.plot([], [], "s", markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.6, label=name)
    ax.set(xlabel="user", ylabel="batch size $B$")
    ax.tick_params(axis="y", rotation=0)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return ax


def batch_over_steps(edge_steps: Sequence[float], ax: plt.Axes | None = None) -> plt.Axes:
    """Requests charged at each edge step times the batch they are charged for, with and without early exit."""
    ax = ax or plt.subplots(figsize=(6.4, 3.2))[1]
    ends, size = np.concatenate([[0], np.sort(edge_steps)]), len(edge_steps)
    present = np.append(np.arange(size, 0, -1), 0)
    kwargs = dict(x=ends, step="post")
    ax.fill_between(y1=present**2, color=COLOURS[0], alpha=0.25, lw=0, **kwargs)
    ax.fill_between(y1=present**2, y2=present * size, color=COLOURS[3], alpha=0.3, lw=0, label="saved", **kwargs)
    ax.step(ends, present * size, where="post", color=COLOURS[3], ls="--", label="static: present × all granted")
    ax.step(ends, present**2, where="post", color=COLOURS[0], label="early exit: present × present")
    ax.annotate(
        f"{size} present × {size} granted = {size**2}", (0, size**2), (4, 4), textcoords="offset points", fontsize=8.5
    )
    ax.set(
        xlabel="edge step",
        ylabel="present × charged for (requests²)",
        ylim=(0, size**2 * 1.12),
        xlim=(0, ends[-1] * 1.03),
    )
    ax.legend(loc="lower left")
    return ax


def grouped_lines(table: pd.DataFrame, x: str, y: str, group: str, ax: plt.Axes | None = None, **axes) -> plt.Axes:
    """Mean of ``y`` against ``x`` with 95 % intervals, a line a group; ``axes`` sets labels and scales."""
    ax = ax or plt.subplots()[1]
    for i, (name, rows) in enumerate(table.groupby(group, sort=False)):
        stats = rows.groupby(x)[y].apply(mean_interval).unstack()
        ax.errorbar(stats.index, stats["mean"], stats["half"], capsize=2, lw=1.4, label=name, **numbered_style(i))
    ax.set(**axes)
    ax.legend()
    return ax
