"""Figures of named machines: their published steps, their lines beside the released ones, what the wrong one costs."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from splitpoint.offloading import published_latency
from splitpoint.offloading.hardware import Curve, Machine
from splitpoint.study.figures.style import COLOURS, mean_interval, numbered_style

KINDS = {"phone": "phones", "tablet": "tablets", "laptop": "laptops", "desktop": "desktops"}


def named_steps(
    edges: Iterable[Machine], devices: Iterable[Machine], measured: dict[str, Curve], ax: plt.Axes | None = None
) -> plt.Axes:
    """Seconds of one step against batch size on log axes: named edges, devices at batch 1, measured curves in black.

    Args:
        edges: with their software in the legend.
        devices: one dot each, coloured by kind and moved apart sideways.
        measured: this project's own curves.
    """
    ax = ax or plt.subplots(figsize=(7.6, 4.6))[1]
    for i, machine in enumerate(edges):
        ax.plot(
            machine.batch, machine.seconds, lw=1.2, label=f"{machine.name}, {machine.software}", **numbered_style(i)
        )
    table = pd.DataFrame([(d.rows[0]["device_type"], d.step_s) for d in devices], columns=["kind", "step_s"])
    for i, (kind, rows) in enumerate(table.groupby("kind", sort=False)):
        place = 0.3 * 0.83**i
        marks = {"ls": "", "marker": "o<>sv"[i % 5], "color": "white", "markeredgecolor": COLOURS[i], "ms": 6}
        ax.plot(np.full(len(rows), place), rows["step_s"], markeredgewidth=1.4, label=KINDS.get(kind, kind), **marks)
    for (name, curve), line in zip(measured.items(), ("-", "--", ":", "-.")):
        sizes, medians = curve.medians()
        ax.plot(sizes, medians, color="black", ls=line, lw=1.8, marker="*", ms=8, label=f"{name} (measured)")
    ax.set(xscale="log", yscale="log", xlabel="batch size (guided images); shaded: users' devices, one image")
    ax.axvspan(0.1, 0.36, color="0.93", zorder=0)
    ax.set(ylabel="one denoising step (s)", xticks=[1, 2, 4, 8, 16], xticklabels=["1", "2", "4", "8", "16"])
    ax.set(xlim=(0.14, 20))
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7.5)
    return ax


def line_plane(lines: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Slopes and intercepts of named machines, and the eleven released lines as numbered stars.

    Args:
        lines: from ``study.hardware.line_table``.
    """
    ax = ax or plt.subplots(figsize=(6.2, 4.2))[1]
    for i, (software, rows) in enumerate(lines.groupby("software", sort=False)):
        style = numbered_style(i) | {"ls": ""}
        ax.plot(rows["k (ms)"], rows["h (ms)"], ms=5, alpha=0.85, label=software, **style)
    for index, line in enumerate(published_latency()):
        k, h = 1e3 * line.slope_s, 1e3 * line.intercept_s
        ax.plot(k, h, "*", ms=11, color="black", label="released, by index" if index == 0 else None)
        ax.annotate(str(index), (k, h), (4, 4), textcoords="offset points", fontsize=8)
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(xscale="log", xlabel="slope $k$ (ms per image)", ylabel="intercept $h$ (ms per step)")
    ax.set(xticks=[15, 30, 60, 120, 240], xticklabels=["15", "30", "60", "120", "240"])
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7.5)
    return ax


def software_bars(lines: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Slope and intercept of one card by software, side by side; bars with the line's 95 % intervals.

    Args:
        lines: from ``study.hardware.line_table``, rows of one card.
    """
    ax = ax or plt.subplots(figsize=(5.2, 3.4))[1]
    place = np.arange(len(lines))
    for i, (column, name) in enumerate((("k (ms)", "slope $k$ (per image)"), ("h (ms)", "intercept $h$ (per step)"))):
        ends = lines[column.replace("(ms)", "interval")].str.split(" … ", expand=True).astype(float).to_numpy().T
        half = np.abs(ends - lines[column].to_numpy())
        ax.bar(place + 0.38 * i, lines[column], 0.36, color=COLOURS[i], label=name, hatch="//" if i else None)
        ax.errorbar(place + 0.38 * i, lines[column], half, fmt="none", color="black", lw=1, capsize=3)
    ax.set(xticks=place + 0.19, xticklabels=lines["software"], ylabel="milliseconds")
    ax.set(ylim=(None, 1.3 * ax.get_ylim()[1]))  # room for the legend
    ax.axhline(0, color="0.4", lw=0.8)
    ax.legend(loc="upper left")
    return ax


def loss_map(matrix: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Share of the gain that is lost, a row a true machine, a column what was believed; colours end at one.

    Args:
        matrix: from ``study.hardware.loss_matrix``.
    """
    ax = ax or plt.subplots(figsize=(0.62 * matrix.shape[1] + 3.2, 0.42 * matrix.shape[0] + 2.0))[1]
    text = matrix.map(lambda share: f"{share:.2f}" if share < 9.95 else f"{share:.0f}")
    sns.heatmap(
        matrix, vmin=0, vmax=1, cmap="rocket_r", annot=text, fmt="", ax=ax, linewidths=0.5, annot_kws={"size": 7.5},
        cbar_kws={"label": "share of the gain lost", "extend": "max"},
    )  # fmt: skip
    ax.set(xlabel="planned with", ylabel="true machine")
    ax.tick_params(axis="x", rotation=40)
    plt.setp(ax.get_xticklabels(), ha="right")
    return ax


def edge_panels(tables: dict[str, pd.DataFrame]) -> plt.Figure:
    """Seconds gained over serving nobody, and share of users granted, against the number of users, a line an edge.

    Args:
        tables: ``{edge: rows}`` from ``study.hardware.gain_over_local``.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8))
    panels = {"gain_s": "gain over all-local (s per user)", "share_granted": "share of users granted"}
    for ax, (column, text) in zip(axes, panels.items()):
        for i, (name, table) in enumerate(tables.items()):
            stats = table.groupby("num_users")[column].apply(mean_interval).unstack()
            ax.errorbar(stats.index, stats["mean"], stats["half"], capsize=2, lw=1.3, label=name, **numbered_style(i))
        ax.set(xlabel="users in the window", ylabel=text, xticks=sorted(stats.index), ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=3, loc="outside upper center")
    return figure
