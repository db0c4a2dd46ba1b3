"""The figures' one hand: style, captions, saving, and a function a figure (tidy table in, axes out)."""

import io
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image

from splitpoint.checks import instance_of, one_of
from splitpoint.files import project_root
from splitpoint.offloading import AccuracyModel, Fit, LatencyModel, confidence_band, optimal_split

#: one colour and marker a method, the same in every figure
METHODS = {
    "exact": ("exact optimum", "black", "o", "-"),
    "early_exit": ("exact, early exit", "#56B4E9", "P", "-"),
    "agent": ("DRL-convex agent", "#D55E00", "*", "-"),
    "genetic": ("genetic algorithm", "#009E73", "s", "--"),
    "greedy": ("greedy", "#0072B2", "^", "--"),
    "milp": ("mixed-integer program", "#E69F00", "h", "--"),
    "all_edge": ("all on the edge", "#CC79A7", "D", ":"),
    "all_local": ("all on the devices", "#999999", "v", ":"),
    "random": ("random", "#A65628", "X", ":"),
    "agent (drl_convex)": ("DRL-convex agent", "#D55E00", "*", "-"),
    "agent (dqn)": ("prioritized-replay DQN", "#882255", "p", "-"),
}
COLOURS = sns.color_palette("colorblind")
MARKERS, LINES = "osD^vP*Xhd<>", ("-", "--", "-.", ":")
QUANTITIES = {
    "reward": "reward (0.1 × utility per user, s)",
    "accuracy": "mean accuracy index (PAI)",
    "latency_s": "mean latency (s)",
    "share_granted": "share of users granted",
    "optimality": "optimality (share of the possible gain)",
}
SCREEN_DPI = 90  # pixels an inch that a figure takes in a notebook
AXES = {"num_users": "users in the window", "num_edge_gpus": "edge GPUs"}


def use_style(compact: bool = False) -> None:
    """Set the style of all figures; called once at the top of a notebook.

    Args:
        compact: embed figures with fewer pixels and colours, for a notebook that holds many; the files keep all.
    """
    if (shell := get_ipython()) is not None:
        set_matplotlib_formats("png")
        embedded = partial(_embedded_png, dpi=100, colours=48) if compact else _embedded_png
        shell.display_formatter.formatters["image/png"].for_type(plt.Figure, embedded)
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind")
    mpl.rcParams.update(
        {
            "figure.dpi": SCREEN_DPI,
            "savefig.dpi": 160,
            "figure.figsize": (6.4, 3.8),
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "lines.markersize": 5,
            "figure.constrained_layout.use": True,
            "pdf.fonttype": 42,
        }
    )


def _embedded_png(figure: plt.Figure, dpi: int = 144, colours: int = 128) -> tuple[bytes, dict[str, int]]:
    """A figure as a notebook shows it: more pixels than points, so that it is sharp on a laptop, in a palette."""
    small = io.BytesIO()
    picture = Image.open(io.BytesIO(print_figure(figure, "png", dpi=dpi))).convert("RGB")
    picture.quantize(colours, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    width, height = (round(pixels * SCREEN_DPI / dpi) for pixels in picture.size)
    return small.getvalue(), {"width": width, "height": height}


def caption(figure: plt.Figure, kind: str, text: str) -> None:
    """Write the caption under a figure: the kind of its numbers, then seeds, interval and source."""
    figure.supxlabel(f"{kind}: {text}", fontsize=7.5, color="0.35", wrap=True)


def save_figure(figure: plt.Figure, name: str) -> None:
    """Save as PDF and PNG under ``figures/``.

    Args:
        figure: the figure.
        name: ``fig01_short_name``.

    Raises:
        OSError: if ``figures/`` cannot be written, naming the file and the reason.
    """
    folder = project_root() / "figures"
    for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
        draft = folder / f".{name}.draft.{ending}"
        try:
            folder.mkdir(exist_ok=True)
            figure.savefig(draft, metadata=metadata)
            draft.replace(folder / f"{name}.{ending}")
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise OSError(
                f"figures/{name}.{ending} cannot be written: {error.strerror or error}. "
                "Make room or give write permission, and run again; finished work is kept."
            ) from error


def method_style(method: str) -> tuple[str, object, str, str]:
    """Label, colour, marker and line of a method; a method of one's own gets a colour by its name."""
    if method in METHODS:
        return METHODS[method]
    return method, COLOURS[sum(map(ord, method)) % len(COLOURS)], "d", "-."


def _bars(method: str, more: str = "") -> dict:
    """How ``errorbar`` draws a method, its name in the legend followed by ``more``."""
    label, colour, marker, line = method_style(method)
    edge = {"markeredgecolor": "black", "markeredgewidth": 0.4}
    return dict(label=label + more, color=colour, marker=marker, ls=line, lw=1.4, capsize=2, **edge)


def numbered_style(i: int) -> dict:
    """Colour, marker and line of the i-th line, where lines are no methods."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "ls": LINES[i % len(LINES)]}


def mean_interval(values: pd.Series) -> pd.Series:
    """Mean and half-width of its 95 % interval over seeds (normal approximation); a single value has no width."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return pd.Series({"mean": values.mean(), "half": half})


def method_lines(
    table: pd.DataFrame, x: str, y: str = "reward", ax: plt.Axes | None = None, legend: bool = True
) -> plt.Axes:
    """Mean of ``y`` against ``x``, a line a method with its 95 % interval over seeds.

    Args:
        table: from ``sweeps.reward_sweep``.
        x: ``num_users``, ``num_edge_gpus`` or another column.
        y: one of ``QUANTITIES``, or another column.

    Raises:
        ValueError: for a column that the table lacks.
    """
    instance_of("table", table, pd.DataFrame)
    one_of("x", x, list(table))
    one_of("y", y, list(table))
    ax = ax or plt.subplots()[1]
    for method in table["method"].unique():
        stats = table[table["method"] == method].groupby(x)[y].apply(mean_interval).unstack()
        ax.errorbar(stats.index, stats["mean"], stats["half"], **_bars(method))
    ax.set(xlabel=AXES.get(x, x), ylabel=QUANTITIES.get(y, y), xticks=sorted(table[x].unique()))
    if legend:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def reward_and_loss(table: pd.DataFrame, x: str) -> plt.Figure:
    """Reward of the methods that can be told apart by eye, and what every method loses against the exact optimum.

    Args:
        table: from ``sweeps.reward_sweep``, ``exact`` among its methods.
        x: ``num_users`` or ``num_edge_gpus``.

    Left, methods that come within 1 % of the exact optimum's gain over all-local everywhere are left out: their lines
    would lie on it. Right, the mean of the paired losses on a logarithmic axis; a method that loses nothing anywhere
    is named in the legend and has no line.

    Raises:
        ValueError: for a table without ``exact`` and ``all_local``, or another column.
    """
    keys = ["num_users", "num_edge_gpus", "seed"]
    instance_of("table", table, pd.DataFrame)
    one_of("x", x, keys)
    for method in ("exact", "all_local"):
        one_of("method", method, sorted(table["method"].unique()))
    wide = table.pivot_table(index=keys, columns="method", values="reward")
    loss = wide.rsub(wide["exact"], axis=0).drop(columns="exact")
    close = (loss.groupby(level=x).mean().max() < 0.01 * (wide["exact"] - wide["all_local"]).mean()).to_dict()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3.8))
    method_lines(table[~table["method"].map(close).fillna(False).astype(bool)], x, ax=left, legend=False)
    for method in [method for method in table["method"].unique() if method != "exact"]:
        stats = loss[method].groupby(level=x).apply(mean_interval).unstack()
        lost = stats["mean"].clip(lower=0).where(stats["mean"] > 1e-9)
        ends = [np.minimum(stats["half"], 0.9 * lost), stats["half"]]  # a logarithmic axis has no room below zero
        right.errorbar(stats.index, lost, ends, **_bars(method, "" if lost.notna().any() else ": loses nothing"))
    right.set(
        yscale="log",
        xlabel=AXES.get(x, x),
        ylabel="reward lost against the exact optimum",
        xticks=sorted(table[x].unique()),
    )
    handles = {label: handle for ax in (left, right) for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
    space_panels(figure)
    return figure


def method_panels(table: pd.DataFrame, x: str, quantities=("accuracy", "latency_s", "share_granted")) -> plt.Figure:
    """One panel a quantity, one legend for all."""
    figure, axes = plt.subplots(1, len(quantities), figsize=(3.4 * len(quantities), 3.6))
    for ax, quantity in zip(axes, quantities):
        method_lines(table, x, quantity, ax, legend=False)
    space_panels(figure)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="outside upper center")
    return figure


def space_panels(figure: plt.Figure) -> None:
    """Keep the labels of a panel off the panel beside it."""
    if engine := figure.get_layout_engine():
        engine.set(wspace=0.06)


def latency_lines(lines: dict[str, LatencyModel], max_batch: int = 18, ax: plt.Axes | None = None) -> plt.Axes:
    """Seconds of one denoising step against batch size, a line a device."""
    ax = ax or plt.subplots()[1]
    batch = np.arange(1, max_batch + 1)
    colours = sns.color_palette("viridis", len(lines))
    for i, ((name, line), colour) in enumerate(zip(lines.items(), colours)):
        ax.plot(
            batch,
            line.step_latency_s(batch),
            label=name,
            ms=3.5,
            lw=1,
            **numbered_style(i) | {"color": colour, "ls": "-"},
        )
    ax.set(xlabel="batch size (requests)", ylabel="one denoising step (s)", ylim=(0, None), xticks=batch[1::2])
    ax.legend(ncols=2, title="device")
    return ax


def accuracy_curve(
    models: dict[str, AccuracyModel], min_split: int = 80, num_steps: int = 200, ax: plt.Axes | None = None
) -> plt.Axes:
    """Accuracy index against split point; shaded is the range that the optimiser may choose from."""
    ax = ax or plt.subplots()[1]
    split = np.linspace(0, num_steps, 201)
    for i, (name, model) in enumerate(models.items()):
        ax.plot(split, model.pai(split), LINES[i % 4], lw=1.6, label=name)
    ax.axvspan(min_split, num_steps, color="0.9", zorder=0, label="allowed split points")
    ax.set(xlabel="split point: last steps on the device", ylabel="accuracy index (PAI)", ylim=(0, 1.02))
    ax.legend()
    return ax


def fitted_line(batch, seconds, fit: Fit, ax: plt.Axes | None = None, label: str = "measured") -> plt.Axes:
    """Measured step latencies, the fitted line and its 95 % confidence band."""
    ax = ax or plt.subplots()[1]
    reach = np.linspace(0, np.max(batch) * 1.05, 100)
    low, high = confidence_band(fit, reach)
    ax.scatter(batch, seconds, s=12, color="black", alpha=0.6, label=label)
    ax.plot(reach, fit.model.step_latency_s(reach), label="line $k\\,b + h$")
    ax.fill_between(reach, low, high, alpha=0.25, label="95 % band")
    ax.set(xlabel="batch size (requests)", ylabel="one denoising step (s)", xlim=(0, None), ylim=(0, None))
    ax.legend()
    return ax


def split_against_alpha(
    parameters, edge: LatencyModel, device_step_s: float, batch_sizes=(1, 6, 12, 18), ax: plt.Axes | None = None
) -> plt.Axes:
    """Optimal split point against preference, a line a batch size."""
    ax = ax or plt.subplots()[1]
    alpha = np.geomspace(1, 1000, 400)
    for i, batch in enumerate(batch_sizes):
        saving = device_step_s - edge.step_latency_s(batch)
        ax.plot(alpha, optimal_split(alpha, saving, parameters), LINES[i % 4], lw=1.6, label=f"batch {batch}")
    ax.set(
        xscale="log",
        xlabel="preference α (s per unit of accuracy)",
        ylabel="optimal split point (steps)",
        ylim=(parameters.min_split - 5, parameters.num_steps + 5),
    )
    ax.legend()
    return ax


def solve_time_lines(table: pd.DataFrame, ax: plt.Axes | None = None) -> plt.Axes:
    """Median seconds to solve one window against its users, both on log axes; bars span the windows."""
    ax = ax or plt.subplots()[1]
    for i, (label, rows) in enumerate(table.groupby("label", sort=False)):
        times = rows.groupby("num_users")["solve_s"].agg(["median", "min", "max"])
        bars = np.abs(times[["min", "max"]].to_numpy().T - times["median"].to_numpy())
        ax.errorbar(
            times.index, times["median"], bars, lw=1.3, capsize=2, label=label, **numbered_style(i) | {"ls": "-"}
        )
        stopped = rows[rows["status"] == "time_limit"]
        ax.scatter(stopped["num_users"], stopped["solve_s"], s=90, facecolors="none", edgecolors="red", zorder=3)
    ax.set(xscale="log", yscale="log", xlabel="users in the window", ylabel="time to solve (s)")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def shortfall_lines(table: pd.DataFrame, methods: Sequence[str] | None = None, ax: plt.Axes | None = None) -> plt.Axes:
    """Share of windows whose shortfall from the optimum exceeds a size, a line a method; both axes logarithmic.

    Args:
        table: with columns ``method`` and ``optimality``, one row per window and method.
        methods: which, in order; all if left out. One that is never off by 1e-6 has no line.
    """
    ax = ax or plt.subplots()[1]
    for method in methods or table["method"].unique():
        short = np.sort(np.maximum(1 - table.loc[table["method"] == method, "optimality"].to_numpy(), 0))[::-1]
        if len(short) == 0 or short[0] < 1e-6:
            continue
        label, colour, marker, line = method_style(method)
        ax.plot(
            np.maximum(short, 1e-6),
            np.arange(1, len(short) + 1) / len(short),
            label=label,
            color=colour,
            ls=line,
            lw=1.6,
            drawstyle="steps-pre",
            marker=marker,
            markevery=max(1, int((short >= 1e-5).sum()) // 6),
            markeredgecolor="black",
            markeredgewidth=0.4,
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(1e-5, None),
        xlabel="shortfall from the optimum, 1 − optimality",
        ylabel="share of windows that fall shorter",
    )
    ax.legend()
    return ax


def gain_lines(
    tables: dict[str, pd.DataFrame], baseline: pd.DataFrame, x: str, y: str = "reward", ax: plt.Axes | None = None
) -> plt.Axes:
    """What settings gain over a baseline on the same windows: mean of the paired differences with 95 % intervals.

    Args:
        tables: ``{setting: rows of one method}``.
        baseline: rows of one method on the same windows.
    """
    ax = ax or plt.subplots()[1]
    keys = ["num_users", "num_edge_gpus", "seed"]
    for i, (name, table) in enumerate(tables.items()):
        gain = table.set_index(keys)[y] - baseline.set_index(keys)[y]
        stats = gain.groupby(level=x).apply(mean_interval).unstack()
        ax.errorbar(stats.index, stats["mean"], stats["half"], capsize=2, label=name, **numbered_style(i))
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(xlabel=AXES.get(x, x), ylabel=f"gain in {QUANTITIES.get(y, y)}", xticks=sorted(stats.index))
    ax.legend()
    return ax


def difference_lines(
    tables: dict[str, pd.DataFrame], x: str, y: str = "reward", method: str = "exact", ax: plt.Axes | None = None
) -> plt.Axes:
    """One method under several settings: mean of ``y`` against ``x`` with 95 % intervals, a line a setting."""
    ax = ax or plt.subplots()[1]
    for i, (name, table) in enumerate(tables.items()):
        stats = table[table["method"] == method].groupby(x)[y].apply(mean_interval).unstack()
        ax.errorbar(stats.index, stats["mean"], stats["half"], capsize=2, label=name, **numbered_style(i))
    ax.set(xlabel=AXES.get(x, x), ylabel=QUANTITIES.get(y, y), xticks=sorted(stats.index))
    ax.legend()
    return ax


def idea_picture(split_points=(80, 120, 160), num_steps: int = 200) -> plt.Figure:
    """The whole idea: one batch on the edge, each image handed over at its own step, one user denied."""
    figure, ax = plt.subplots(figsize=(7.6, 2.9))
    users = [(f"user {i + 1}", n) for i, n in enumerate(split_points)] + [("denied user", num_steps)]
    edge, device = COLOURS[0], COLOURS[1]
    for row, (_, split) in enumerate(users):
        start = num_steps - split
        ax.barh(row, start, color=edge, edgecolor="white", height=0.62)
        ax.barh(row, split, left=start, color=device, edgecolor="white", height=0.62, hatch="//")
        if start:
            ax.plot([start, start], [row - 0.42, row + 0.42], color="black", lw=2.2, solid_capstyle="butt")
        ax.text(num_steps + 3, row, f"split point $n$ = {split}", va="center", fontsize=8)
    ax.annotate(
        "hand-over of the half-finished image",
        (num_steps - split_points[0], -0.42),
        (num_steps - split_points[0] + 12, -0.9),
        va="center",
        fontsize=8,
        arrowprops={"arrowstyle": "-|>", "lw": 1.0, "color": "black", "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 0},
    )
    ax.text(4, 0, "shared model, one batch on the edge", va="center", color="white", fontsize=8, weight="bold")
    ax.text(
        num_steps - 4,
        len(users) - 1,
        "own model, on the user's device",
        va="center",
        ha="right",
        fontsize=8,
        weight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )
    ax.set(
        yticks=range(len(users)),
        yticklabels=[name for name, _ in users],
        xlim=(0, num_steps + 52),
        ylim=(len(users) - 0.5, -1.2),
        xlabel="denoising step (from noise, left, to image, right)",
        xticks=range(0, num_steps + 1, 40),
    )
    ax.grid(False)
    sns.despine(ax=ax, left=True)
    return figure
