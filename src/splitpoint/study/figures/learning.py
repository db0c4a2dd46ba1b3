"""Figures of the learning notebook: tidy table in, axes or figure out."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from splitpoint.study.figures.style import QUANTITIES, method_style, solve_time_lines

CURVE_QUANTITIES = ("reward", "accuracy", "latency_s")


def training_curves(table: pd.DataFrame, learner: str = "dqn", quantities=CURVE_QUANTITIES) -> plt.Figure:
    """Held-out means against episodes, a row a setting, a column a quantity; the exact optimum as a line.

    Args:
        table: ``data/learning/curves.csv``.
        learner: ``dqn`` or ``ppo``.
        quantities: of ``reward, accuracy, latency_s``.
    """
    table = table.loc[table["learner"] == learner]
    settings = list(table["setting"].unique())
    figure, axes = plt.subplots(
        len(settings),
        len(quantities),
        sharex="row",
        squeeze=False,
        figsize=(3.1 * len(quantities), 1.75 * len(settings)),
    )
    for row, setting in enumerate(settings):
        rows = table[table["setting"] == setting]
        for ax, quantity in zip(axes[row], quantities):
            _band(ax, rows, quantity)
            ax.axhline(rows[f"exact_{quantity}"].iloc[0], color="black", ls="--", lw=1)
            ax.set(xlabel="episodes" if row == len(settings) - 1 else "", ylabel="")
            if row == 0:
                ax.set_title(QUANTITIES[quantity], fontsize=8.5)
        axes[row, 0].set_ylabel(setting.replace(" ", "\n", 1), fontsize=8)
    return figure


def learning_curve(curve: pd.DataFrame, y: str = "optimality", ax: plt.Axes | None = None, label: str = "") -> plt.Axes:
    """One quantity of an agent's own curve (``Agent.curve``) against decisions."""
    ax = ax or plt.subplots()[1]
    ax.plot(curve["decisions"], curve[y], marker="o", label=label)
    ax.set(xlabel="decisions", ylabel=QUANTITIES[y])
    return ax


def _band(ax, rows, quantity):
    stats = rows.groupby("decisions").agg(
        episodes=("episodes", "mean"), mean=(quantity, "mean"), low=(quantity, "min"), high=(quantity, "max")
    )
    colour = method_style("agent")[1]
    ax.plot(stats["episodes"], stats["mean"], color=colour, lw=1.3)
    ax.fill_between(stats["episodes"], stats["low"], stats["high"], color=colour, alpha=0.25, lw=0)


def ablation_intervals(table: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Mean shortfall of each variant on a logarithmic axis: a dot a seed, a bar from the best to the worst seed.

    Args:
        table: ``data/learning/ablation.csv``.
    """
    table = table.assign(shortfall=1 - table["mean"])
    order = table.groupby("variant")["shortfall"].median().sort_values().index
    ax = ax or plt.subplots(figsize=(6.4, 0.28 * len(order) + 1.2))[1]
    ends = table.groupby("variant")["shortfall"].agg(["min", "max"]).loc[order]
    ax.hlines(range(len(order)), ends["min"], ends["max"], color="0.7", lw=4)
    sns.stripplot(
        table,
        x="shortfall",
        y="variant",
        order=order,
        color=method_style("agent")[1],
        size=5,
        jitter=False,
        edgecolor="black",
        linewidth=0.4,
        ax=ax,
    )
    ax.set(xscale="log", xlabel="mean shortfall from the optimum, 1 − optimality (left is better)", ylabel="")
    return ax


def outside_training(table: pd.DataFrame, agents=("drl_convex", "dqn")) -> plt.Figure:
    """Mean, 1st percentile and minimum of optimality in each setting, a panel an agent.

    Args:
        table: ``data/learning/outside.csv``.
    """
    agents = [agent for agent in agents if agent in set(table["agent"])]
    figure, axes = plt.subplots(1, len(agents), sharey=True, squeeze=False, figsize=(4.6 * len(agents), 3.2))
    for ax, agent in zip(axes[0], agents):
        rows = table[table["agent"] == agent].iloc[::-1]
        label, colour, *_ = method_style(f"agent ({agent})")
        ax.hlines(rows["setting"], rows["min"], rows["mean"], color="0.75", lw=2)
        for column, marker, text in (("mean", "o", "mean"), ("p1", "d", "1st percentile"), ("min", "|", "minimum")):
            ax.plot(rows[column], rows["setting"], marker, color=colour, markeredgecolor="black", label=text)
        ax.set(xlabel="optimality", title=label)
        ax.locator_params(axis="x", nbins=5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc="outside upper right")
    return figure


def decision_times(table: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Seconds to decide one window against its number of users.

    Args:
        table: ``data/learning/decision_times.csv``, columns as from ``sweeps.solve_times``.
    """
    ax = solve_time_lines(table, ax)
    ax.set_ylabel("time to decide one window (s)")
    return ax
