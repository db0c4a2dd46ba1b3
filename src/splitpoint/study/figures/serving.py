"""Figures of the running edge: who was where when, and how far the prediction was from the measurement."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from splitpoint.checks import instance_of

#: part of a request's time: column, what it is called, colour
PARTS = (
    ("queue_s", "waits for a step to begin", "0.65"),
    ("steps_s", "steps on the edge", "C0"),
    ("transfer_s", "hand-over", "C2"),
    ("device_s", "steps on the device", "C1"),
)


def gantt(table: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """A line a request, from asking to seeing, coloured by what happens to it.

    Args:
        table: of ``serving.load.play``, in order of arrival.
        ax: new axes if left out.
    """
    instance_of("table", table, pd.DataFrame)
    ax = plt.subplots(figsize=(8, 0.09 * len(table) + 1.3))[1] if ax is None else ax
    start = table.arrival_s.to_numpy(copy=True)
    lines = np.arange(len(table))
    for column, label, colour in PARTS:
        seconds = table.get(column, pd.Series(0.0, table.index)).fillna(0.0).to_numpy()
        seconds = seconds + (table.hand_over_s.fillna(0.0).to_numpy() if column == "transfer_s" else 0.0)
        ax.barh(lines, seconds, left=start, height=0.8, color=colour, label=label, linewidth=0)
        start = start + seconds
    ax.plot(table.predicted_total_s + table.arrival_s, lines, "k|", ms=5, mew=1.2, label="predicted at admission")
    ax.set(xlabel="seconds since the first request", ylabel="request", ylim=(len(table) - 0.5, -0.5))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="upper right", fontsize=8)
    ax.grid(axis="y", visible=False)
    return ax


def predicted_against_measured(table: pd.DataFrame, hue: str = "policy") -> plt.Figure:
    """Seconds from asking to seeing, and the share by which the prediction missed.

    Args:
        table: ``predicted_total_s, total_s`` and ``hue``, one row a request.
        hue: column.
    """
    instance_of("table", table, pd.DataFrame)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    style = dict(hue=hue, style=hue, palette="colorblind")
    sns.scatterplot(table, x="predicted_total_s", y="total_s", ax=left, s=22, alpha=0.8, **style)
    most = float(table[["predicted_total_s", "total_s"]].max().max()) * 1.03
    left.plot([0, most], [0, most], color="0.5", ls="--", lw=1, zorder=0)
    left.set(xlabel="predicted at admission (s)", ylabel="measured (s)", xlim=(0, most), ylim=(0, most))
    shares = table.assign(error=100 * (table.predicted_total_s - table.total_s).abs() / table.total_s)
    sns.ecdfplot(shares, x="error", hue=hue, palette="colorblind", ax=right, legend=False)
    right.axvline(8, color="0.5", ls=":", lw=1)
    right.axhline(0.95, color="0.5", ls=":", lw=1)
    right.set(xlabel="missed by (% of the measured time)", ylabel="share of requests", xlim=(0, None))
    return figure


def step_table(table_s: Sequence[float], line_s: Sequence[float], ax: plt.Axes | None = None) -> plt.Axes:
    """Seconds of a step against the batch, as measured at the start, and the straight line through them.

    Args:
        table_s: at batch 1, 2, …, shape (n,).
        line_s: of the line, alike.
        ax: new axes if left out.
    """
    ax = plt.subplots(figsize=(5.5, 3.2))[1] if ax is None else ax
    sizes = np.arange(1, len(table_s) + 1)
    ax.plot(sizes, 1000 * np.asarray(table_s), "o-", ms=4, label="measured while it serves")
    ax.plot(sizes, 1000 * np.asarray(line_s), "--", color="0.4", label="line $k b + h$")
    ax.set(xlabel="rows in the step", ylabel="step (ms)", ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return ax
