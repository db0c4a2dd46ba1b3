"""Figures of the learned cost curve: what a step costs, rollouts, generations, and who is ahead of whom."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import LogLocator, ScalarFormatter
from numpy.typing import NDArray

from splitpoint.checks import instance_of
from splitpoint.edge import Twin
from splitpoint.edge.learned_price import CONTEXT, LOADS, PriceWeights


def cost_map(twin: Twin, cost_s: NDArray[np.float64], steps: int, level: int = 1) -> plt.Figure:
    """What a grant costs everybody: against who is inside and how long they stay, and against its length.

    Args:
        twin: the small edge.
        cost_s: of ``Twin.costs``.
        steps: coarse steps of the grant on the left.
        level: of compute.
    """
    instance_of("twin", twin, Twin)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    inside = twin.batch < twin.max_batch
    stay = twin.left.sum(axis=1) / np.maximum(twin.batch, 1)
    table = pd.DataFrame(dict(members=twin.batch, stay=np.round(stay), cost=cost_s[:, steps, level, 0]))[inside]
    grid = (
        table[table.members > 0].pivot_table(index="stay", columns="members", values="cost").sort_index(ascending=False)
    )
    sns.heatmap(grid, cmap="rocket_r", annot=True, fmt=".1f", ax=left, cbar_kws=dict(label="seconds"))
    left.set(xlabel="members already inside", ylabel="coarse steps that they still have, mean")
    left.set_yticklabels([f"{value:.0f}" for value in grid.index], rotation=0)
    length = np.arange(twin.most_steps + 1)
    for members, colour in zip(range(twin.max_batch), sns.color_palette("rocket_r", twin.max_batch + 1)[1:]):
        here = twin.batch == members
        right.plot(length, cost_s[here, :, level, 0].mean(axis=0), "o-", color=colour, ms=3, label=f"{members}")
    right.set(xlabel="coarse steps granted", ylabel="cost for everybody (s)", ylim=(0, None))
    right.legend(title="members inside", fontsize=8)
    return figure


def samples_against_exact(exact_s: NDArray, sampled_s: NDArray, ax: plt.Axes | None = None) -> plt.Axes:
    """Single rollouts, and their means in groups of states of like cost, against the exact cost.

    Args:
        exact_s, sampled_s: shape (n,) each.
        ax: new axes if left out.
    """
    ax = plt.subplots(figsize=(5.2, 3.8))[1] if ax is None else ax
    order = np.argsort(exact_s)
    shown = order[:: max(1, len(order) // 1_000)]
    ax.plot(exact_s[shown], sampled_s[shown], ".", color="0.75", ms=3, label="one rollout")
    groups = np.array_split(order, 12)
    mean = [sampled_s[group].mean() for group in groups]
    error = [2 * sampled_s[group].std() / np.sqrt(len(group)) for group in groups]
    ax.errorbar([exact_s[g].mean() for g in groups], mean, error, fmt="o", ms=5, color="C0", label="mean, ± 2 errors")
    most = float(exact_s.max())
    ax.plot([0, most], [0, most], "k--", lw=1, label="exact")
    ax.set(xlabel="exact cost of the grant (s)", ylabel="by coupled rollouts (s)", ylim=(-most, 3 * most))
    ax.legend(loc="upper left", fontsize=8)
    return ax


def share_by_generation(shares: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """How near to the optimum each generation is.

    Args:
        shares: ``generation, rate_hz, share``.
        ax: new axes if left out.
    """
    instance_of("shares", shares, pd.DataFrame)
    ax = plt.subplots(figsize=(5.5, 3.5))[1] if ax is None else ax
    for rate, group in shares.groupby("rate_hz"):
        ax.plot(group.generation + 1, 100 * (1 - group.share), "o-", ms=4, label=f"{rate:g} a second")
    ax.set(xlabel="generation", ylabel="short of the optimum (%)", yscale="log")
    ax.set_xticks(sorted(shares.generation + 1))
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    ax.yaxis.set_minor_formatter(ScalarFormatter())
    ax.legend(fontsize=8)
    return ax


def short_of_optimum(table: pd.DataFrame, names: Mapping[str, str], ax: plt.Axes | None = None) -> plt.Axes:
    """Rules on the twin, short of the exact online optimum, against the rate.

    Args:
        table: ``rule, rate_hz, share``.
        names: of the rules to show, and how they are called.
        ax: new axes if left out.
    """
    instance_of("table", table, pd.DataFrame)
    ax = plt.subplots(figsize=(6.2, 3.8))[1] if ax is None else ax
    for (rule, label), marker in zip(names.items(), "o^sDv*"):
        here = table[table.rule == rule].sort_values("rate_hz")
        here = here[here.share < 1 - 1e-9]  # nothing is short of itself
        ax.plot(here.rate_hz, 100 * (1 - here.share), marker + "-", ms=5, label=label)
    ax.axhline(0.5, color="0.5", ls=":", lw=1)
    ax.set(xlabel="requests a second", ylabel="short of the optimum (%)", yscale="log")
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def ahead(paired: pd.DataFrame, rivals: Sequence[str], titles: Mapping[str, str]) -> plt.Figure:
    """How far the learned curve is ahead of its rivals, scenario by scenario, with intervals.

    Args:
        paired: of ``study.learned_price.paired``.
        rivals: one panel each.
        titles: of the panels.
    """
    instance_of("paired", paired, pd.DataFrame)
    cases = list(dict.fromkeys(paired.scenario))
    figure, axes = plt.subplots(1, len(rivals), figsize=(2.1 * len(rivals) + 2.2, 0.26 * len(cases) + 1.1), sharey=True)
    figure.set_layout_engine("constrained")
    for ax, rival in zip(np.atleast_1d(axes), rivals):
        here = paired[paired.against == rival].set_index("scenario").reindex(cases)
        place, middle = np.arange(len(cases)), 100 * here.ahead
        reach = [middle - 100 * here.low, 100 * here.high - middle]
        colours = np.where(here.low > 0, "C2", np.where(here.high < 0, "C3", "0.5"))
        for at, value, low, high, colour in zip(place, middle, *reach, colours):
            ax.errorbar(value, at, xerr=[[low], [high]], fmt="o", ms=4, color=colour, lw=1.2)
        ax.axvline(0, color="k", lw=0.8)
        ax.set_xscale("symlog", linthresh=2)
        ticks = [-10, -1, 0, 1, 10, 100]
        most = max(2.0, float(np.nanmax(np.abs([100 * here.low, 100 * here.high]))))
        ax.set(xlim=(-most * 1.3, most * 1.3), xlabel="ahead by (%)")
        shown = [tick for tick in ticks if abs(tick) <= most * 1.3]
        ax.set_xticks(shown, [str(tick) for tick in shown])
        ax.minorticks_off()
        ax.set_title(titles.get(rival, rival), fontsize=9)
    first = np.atleast_1d(axes)[0]
    first.set_yticks(np.arange(len(cases)), cases, fontsize=8)
    first.invert_yaxis()
    return figure


def shares_over_load(weights: PriceWeights) -> plt.Figure:
    """What the learned price is made of: shares of its two parts over the load, on an empty edge and on a full one.

    All other ratios are zero: a rate and compute that stand still, an edge that is neither dear nor cheap.

    Args:
        weights: of ``edge.learned_price``.
    """
    instance_of("weights", weights, PriceWeights)
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2), sharex=True, layout="constrained")
    titles = ("of the closed-form price", "of the marginal cost of a step")
    for ax, numbers, title in zip(axes, (weights.share, weights.slope), titles):
        known = dict(zip(CONTEXT, numbers[len(LOADS) :]))
        lean = known["inside"] + known["inside_if_busy"] * (LOADS - LOADS[2])
        for inside, style, label in ((0.0, "--", "empty"), (0.5, "-", "half full"), (1.0, ":", "full")):
            shown = np.maximum(numbers[: len(LOADS)] + lean * (inside - 0.5), 0.0)
            ax.plot(np.exp(2 * LOADS), shown, "o" + style, ms=3, color="C0", label=label)
        ax.set(xscale="log", xlabel="load", ylabel="share", ylim=(0, None), title=title)
        ax.xaxis.set_major_formatter(ScalarFormatter())
    axes[1].legend(title="the edge is", fontsize=8)
    return figure


def dots(table: pd.DataFrame, value: str, label: str, groups: str, ax: plt.Axes | None = None) -> plt.Axes:
    """One dot a seed, one line a group, best at the top.

    Args:
        table: with columns ``value`` and ``groups``.
        value, label: column, and what it is called.
        groups: column.
        ax: new axes if left out.
    """
    instance_of("table", table, pd.DataFrame)
    order = table.groupby(groups)[value].mean().sort_values(ascending=False).index
    ax = plt.subplots(figsize=(6.5, 0.34 * len(order) + 0.9))[1] if ax is None else ax
    sns.stripplot(table, x=value, y=groups, order=order, size=5, alpha=0.8, color="C0", jitter=False, ax=ax)
    ax.set(xlabel=label, ylabel="")
    ax.grid(axis="y", visible=True)
    return ax
