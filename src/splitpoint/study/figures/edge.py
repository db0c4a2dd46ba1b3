"""Figures of notebook 10: requests over time."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from splitpoint.edge import Edge, Poisson, batch_over_time, draw_paths, make_policy, mean_inside, price_bound, simulate
from splitpoint.edge.observation import System
from splitpoint.edge.policies import PostedPrice
from splitpoint.edge.steady import capacity_hz
from splitpoint.offloading import published_latency
from splitpoint.study.figures.style import mean_interval, numbered_style

NAMES = {
    "window_plan": "window plan, as released",
    "window_plan_counting": "window plan that counts who is there",
    "first_come": "first come",
    "selfish": "selfish",
    "myopic": "myopic",
    "replanning": "early-exit re-planning",
    "posted_price": "posted price",
    "state_price": "price from batch and compute",
    "adaptive_price": "the same, rate estimated",
    "fluid_resolving": "fluid re-solving",
    "bayes_selector": "Bayes selector",
    "hindsight_duals": "averaged hindsight duals",
    "mirror_descent": "dual mirror descent",
    "drift_plus_penalty": "drift plus penalty",
    "rollout": "rollout",
}


def share_lines(table: pd.DataFrame, groups: Sequence[Sequence[str]], floor: float = -0.5) -> plt.Figure:
    """Gain as a share of the bound against the arrival rate, a panel a group of policies, 95 % intervals over paths.

    Args:
        table: rows of ``living_edge.play`` with ``rate_hz``.
        groups: names of policies for each panel.
        floor: lowest share shown; what lies below leaves the panel.
    """
    figure, axes = plt.subplots(1, len(groups), figsize=(4.1 * len(groups), 3.6), sharey=False)
    for ax, names in zip(np.atleast_1d(axes), groups):
        for number, name in enumerate(names):
            stats = table[table.policy == name].groupby("rate_hz").share.apply(mean_interval).unstack()
            mean, half = stats.iloc[:, 0], stats.iloc[:, 1]
            ax.errorbar(mean.index, mean, yerr=half, label=NAMES.get(name, name), capsize=2, **numbered_style(number))
        ax.axhline(1, color="black", lw=1, ls="--")
        ax.set(xlabel="requests a second", ylabel="share of the bound")
        ax.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, frameon=False)
        low = table[table.policy.isin(list(names))].share.min()
        ax.set_ylim(max(floor, low - 0.05), 1.03)
    return figure


def inside_over_time(tables: dict[str, pd.DataFrame], ax: plt.Axes | None = None) -> plt.Axes:
    """Members and waiting over time, a line a policy."""
    ax = ax or plt.subplots(figsize=(6.4, 3.2))[1]
    for number, (name, table) in enumerate(tables.items()):
        inside = batch_over_time(table)
        style = {key: value for key, value in numbered_style(number).items() if key != "marker"}
        ax.step(inside.time_s, inside.batch + inside.waiting, where="post", label=name, **style)
    ax.set(xlabel="time (s)", ylabel="requests on the edge")
    ax.legend()
    return ax


def price_against_load(edge: Edge, ax: plt.Axes | None = None) -> plt.Axes:
    """What one more step costs all, against the work asked for: in the steady state, and in a fluid without chance."""
    ax = ax or plt.subplots(figsize=(5.2, 3.2))[1]
    share = np.linspace(0.02, 0.97, 60)
    cost = [mean_inside(edge, s * capacity_hz(edge))[1] for s in share]
    batch = np.linspace(1, edge.max_batch, 200)
    step = np.asarray(edge.latency.step_latency_s(batch))
    work = batch / step
    ax.plot(share, np.array(cost) * 1e3, label="steady state, with chance", **_line(0))
    ax.plot(work / capacity_hz(edge), np.gradient(batch, work) * 1e3, label="fluid, without", **_line(1))
    ax.set(xlabel="steps asked for, as a share of what a full batch does", ylabel="price of a step (ms)", yscale="log")
    ax.legend()
    return ax


def split_of_regret(table: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Bars of what a rule keeps, loses by its own fault, and what no rule could have known.

    Args:
        table: ``rule, kept, own_fault, unknowable``, shares of the bound.
    """
    ax = ax or plt.subplots(figsize=(6.0, 0.32 * len(table) + 1.0))[1]
    left, colours = np.zeros(len(table)), ("0.75", numbered_style(1)["color"], numbered_style(0)["color"])
    for column, label, colour in zip(
        ("kept", "own_fault", "unknowable"), ("kept", "own fault", "not knowable, or bound not tight"), colours
    ):
        ax.barh(table.rule, table[column], left=left, color=colour, label=label)
        left = left + table[column].to_numpy()
    ax.set(xlabel="share of the clairvoyant bound", xlim=(min(0.4, table.kept.min() - 0.05), 1.0))
    ax.invert_yaxis()
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, fontsize=7)
    return ax


def speed_of_batches(edges: dict[str, Edge], ax: plt.Axes | None = None) -> plt.Axes:
    """Steps a second of all members together against the batch, as a multiple of one member's."""
    ax = ax or plt.subplots(figsize=(5.2, 3.0))[1]
    for number, (name, edge) in enumerate(edges.items()):
        batch = np.arange(1, edge.max_batch + 1)
        speed = batch / edge.step_table_s()[1:]
        ax.plot(batch, speed / speed[0], label=name, **numbered_style(number))
    ax.set(xlabel="members of the batch", ylabel="speed against one member")
    ax.legend()
    return ax


def price_panels(
    rate_hz: float, num_gpus: int, price_s: float, horizon_s: float = 40.0, seed: int = 0
) -> tuple[plt.Figure, pd.Series]:
    """Requests on the edge under the window plan and under a price, and what both gain.

    Args:
        rate_hz: requests a second.
        num_gpus: of the pooled edge.
        price_s: seconds a step.
        horizon_s, seed: of the path.

    Returns:
        The figure, and gains as shares of the bound.
    """
    edge = Edge(published_latency()[0].shared_by(num_gpus))
    paths = draw_paths([edge], Poisson(rate_hz, horizon_s), seed)
    named = {
        "window plan": make_policy("window_plan", [edge]),
        "price": PostedPrice(np.array([price_s]), System((edge,))),
    }
    tables = {name: simulate([edge], paths, policy) for name, policy in named.items()}
    bound = price_bound([edge], paths[0])
    shares = pd.Series({name: table.gain_s.sum() / bound for name, table in tables.items()})
    ax = inside_over_time({f"{name}: {shares[name]:.2f} of the bound": table for name, table in tables.items()})
    ax.set_title(f"{rate_hz:g} requests a second, {num_gpus} GPUs, {1000 * price_s:.0f} ms a step", fontsize=9)
    return ax.figure, shares


def price_slider():
    """Sliders for rate, compute and price over ``price_panels`` (needs a running kernel)."""
    import ipywidgets

    def draw(rate: float, gpus: int, price_ms: float):
        price_panels(rate, gpus, price_ms / 1000)
        plt.show()

    return ipywidgets.interactive(
        draw,
        rate=ipywidgets.FloatSlider(8, min=2, max=16, step=1, description="rate (1/s)", continuous_update=False),
        gpus=ipywidgets.IntSlider(16, 4, 32, 4, description="GPUs", continuous_update=False),
        price_ms=ipywidgets.FloatSlider(
            150, min=0, max=400, step=10, description="price (ms)", continuous_update=False
        ),
    )


def _line(number: int) -> dict:
    return {key: value for key, value in numbered_style(number).items() if key != "marker"}
