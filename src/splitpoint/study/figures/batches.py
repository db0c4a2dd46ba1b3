"""Figures of a step-level batch: which row stands at which step while they share forward passes."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd

from splitpoint.checks import whole_number


def rows_over_ticks(table: pd.DataFrame, labels: Mapping[int, str], num_steps: int, marked_tick: int) -> plt.Figure:
    """A line a request from its arrival to its exit, coloured by the step it is at; a forward pass a tick.

    Args:
        table: ``tick, request, step``: each row of each forward pass, with the steps it has done afterwards.
        labels: of each request, top to bottom.
        num_steps: denoising steps N of a run, the end of the colours.
        marked_tick: a tick whose rows' steps are written out.

    Raises:
        ValueError: for a tick in which no request takes part.
    """
    whole_number("marked_tick", marked_tick, 0)
    marked = table[table.tick == marked_tick]
    if marked.empty:
        raise ValueError(f"marked_tick={marked_tick} has no row; valid are those of the table")
    figure, ax = plt.subplots(figsize=(7.4, 0.34 * len(labels) + 1.1))
    tall = [(-1, -2.2), (1, -2.2), (1, 2.2), (-1, 2.2)]  # a marker that fills a tick and most of a line
    style = {"marker": tall, "s": 150, "linewidths": 0, "cmap": "viridis", "vmin": 0, "vmax": num_steps}
    colours = ax.scatter(table.tick, table.request, c=table.step, **style)
    for row in marked.itertuples():
        dark = row.step < num_steps * 0.6
        ax.text(row.tick, row.request, str(row.step), ha="center", va="center", fontsize=8, color="w" if dark else "k")
    for request, part in table.groupby("request"):
        ax.text(part.tick.max() + 1, request, f"leaves with {part.step.max()} done", va="center", fontsize=7)
    ax.axvline(marked_tick, color="0.6", lw=1.2, ls="--", zorder=0)
    ax.set(xlabel="forward pass of the edge (tick)", xlim=(-1, table.tick.max() + 17), yticks=list(labels))
    ax.set_yticklabels(labels.values())
    ax.grid(False)
    ax.invert_yaxis()
    figure.colorbar(colours, ax=ax, label="steps done", pad=0.01)
    return figure
