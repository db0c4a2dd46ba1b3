"""Figures made of pictures, and the curves measured on them: pictures or a tidy table in, a figure or axes out."""

import io
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from PIL import Image, ImageDraw

from splitpoint.checks import whole_number
from splitpoint.diffusion.accuracy import summarize_pai
from splitpoint.study.figures.style import numbered_style, space_panels

PARTS = {
    "pai": "personalized accuracy index (PAI)",
    "text_score": "text-image score",
    "distance": "mean deep-feature distance\nto the other users",
    "style_ok": "style recognised as the user's own",
}


def picture_grid(
    pictures, row_labels: Sequence[str] = (), column_labels: Sequence[str] = (), title: str = "", inches: float = 0.9
) -> plt.Figure:
    """Pictures in rows and columns.

    Args:
        pictures: (rows, columns, 3, H, W) with values in [0, 1], array or tensor; or nested lists of PIL images.
        row_labels: one a row, written at its left.
        column_labels: one a column, written above it.
        title: over the whole figure.
        inches: edge length of one picture.
    """
    rows = [[_array(picture) for picture in row] for row in pictures]
    figure, axes = plt.subplots(
        len(rows),
        len(rows[0]),
        squeeze=False,
        dpi=72,  # a pixel for each of the picture's
        figsize=(inches * len(rows[0]) + 0.9, inches * len(rows) + 0.5),
    )
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            axes[r, c].imshow(picture, interpolation="nearest" if max(picture.shape) < 64 else None)
            axes[r, c].set(xticks=[], yticks=[])
            sns.despine(ax=axes[r, c], left=True, bottom=True)
    for ax, label in zip(axes[:, 0], row_labels):
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for ax, label in zip(axes[0], column_labels):
        ax.set_title(label, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def split_grid(pictures, users: Sequence[str], split_points: Sequence[int], num_steps: int, prompt: str) -> plt.Figure:
    """One prompt, a row a user, a column a split point: from one shared picture to everyone's own.

    Args:
        pictures: (split points, users, 3, H, W), as from ``HybridPipeline.compare``.
        users: names, in the order of the pictures.
        split_points: steps on the device, in the order of the pictures.
        num_steps: steps of the whole run, N.
        prompt: what was drawn.
    """
    labels = [f"n = {split}" for split in split_points]
    for place, split in enumerate(split_points):
        if split in (0, num_steps):
            labels[place] += "\nall edge" if split == 0 else "\nall device"
    return picture_grid(
        np.swapaxes(np.asarray(pictures), 0, 1),
        users,
        labels,
        f"“{prompt}”, N = {num_steps} steps, the last n on the user's device",
    )


def split_animation(
    pictures, users: Sequence[str], split_points: Sequence[int], num_steps: int, prompt: str, scale: int = 3
) -> bytes:
    """The split point moving from all edge to all device and back: one frame a split point, one picture a user.

    Args:
        pictures: (split points, users, 3, H, W) with values in [0, 1], as from ``HybridPipeline.compare``.
        users: names, in the order of the pictures.
        split_points: steps on the device, in the order of the pictures.
        num_steps: steps of the whole run, N.
        prompt: what was drawn.
        scale: every pixel becomes a square of so many; a whole number keeps it sharp.

    Returns:
        an animated WebP file.
    """
    whole_number("scale", scale, 1, 16)
    levels = (np.asarray(pictures).clip(0, 1) * 255).round().astype(np.uint8)
    levels = levels.repeat(scale, axis=-1).repeat(scale, axis=-2)  # (split points, users, 3, scale H, scale W)
    _, _, _, high, wide = levels.shape
    gap, line = 6, 20
    frames = []
    for split, row in zip(split_points, levels, strict=True):
        frame = Image.new("RGB", (len(users) * (wide + gap) + gap, high + 3 * line + gap), "white")
        pen = ImageDraw.Draw(frame)
        where = {0: ", all on the edge", num_steps: ", all on the device"}.get(split, "")
        pen.text((gap, 4), f"“{prompt}”: the last {split} of {num_steps} steps on the user's device{where}", "black")
        pen.rectangle((gap, line, gap + (frame.width - 2 * gap) * split / num_steps, line + 5), "#0173b2")
        for place, (user, picture) in enumerate(zip(users, row, strict=True)):
            left = gap + place * (wide + gap)
            frame.paste(Image.fromarray(np.moveaxis(picture, 0, -1)), (left, 2 * line))
            pen.text((left + wide / 2, 2 * line + high + 4), user, "black", anchor="ma")
        frames.append(frame)
    there_and_back = [*frames, *frames[-2:0:-1]]
    ends = (frames[0], frames[-1])
    shown_ms = [1400 if any(frame is end for end in ends) else 450 for frame in there_and_back]
    file = io.BytesIO()
    there_and_back[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=there_and_back[1:],
        duration=shown_ms,
        loop=0,
        lossless=True,
        method=6,
    )
    return file.getvalue()


def pai_curves(table: pd.DataFrame, value: str = "pai", ax: plt.Axes | None = None) -> plt.Axes:
    """One measured part of the index against the split point: each prompt thin, the mean with its 95 % interval.

    Args:
        table: as from ``diffusion.quality.measure_pai``.
        value: one of ``PARTS``.
        ax: where to draw.
    """
    ax = ax or plt.subplots()[1]
    for _, rows in table.groupby("prompt"):
        curve = rows.groupby("split_point")[value].mean()
        ax.plot(curve.index, curve, color="0.7", lw=0.6, zorder=1)
    summary = summarize_pai(table, value)
    ax.fill_between(summary["split_point"], summary["low"], summary["high"], color="C0", alpha=0.3, lw=0, zorder=2)
    ax.plot(
        summary["split_point"],
        summary["mean"],
        color="C0",
        marker="o",
        zorder=3,
        label="mean, 95 % interval over prompts",
    )
    ax.plot([], [], color="0.7", lw=0.6, label="one prompt")
    num_steps = table["num_steps"].iloc[0]
    ax.set(xlabel=f"split point n (of N = {num_steps} steps)", ylabel=PARTS.get(value, value))
    ax.legend(loc="lower right")
    return ax


def pai_panels(table: pd.DataFrame) -> plt.Figure:
    """The index and its parts side by side."""
    values = [value for value in PARTS if value in table]
    figure, axes = plt.subplots(1, len(values), figsize=(3.3 * len(values), 3.2))
    for ax, value in zip(axes, values):
        pai_curves(table, value, ax)
        ax.get_legend().remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, ncols=len(labels), loc="outside upper center" if figure.get_layout_engine() else None
    )
    space_panels(figure)
    return figure


def schedule_panels(samples: dict[str, pd.DataFrame]) -> plt.Figure:
    """Mean index under several ways of spacing the steps: against the split point, and against the hand-over's noise.

    Args:
        samples: ``{schedule: rows of measure_pai with a column n}``, see ``accuracy_study.schedule_samples``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
    for i, (label, table) in enumerate(samples.items()):
        means = table.groupby("n")[["pai", "sigma"]].mean()
        left.plot(means.index, means["pai"], label=label, **numbered_style(i))
        shown = means[means["sigma"] > 0.01]  # a finished picture has no place on a logarithmic axis
        right.plot(shown["sigma"], shown["pai"], **numbered_style(i))
    left.set(xlabel="split point n (of 200 steps)", ylabel="personalized accuracy index (PAI)")
    right.set(xlabel="noise per unit of signal at the hand-over", xscale="log")
    left.legend()
    return figure


def _array(picture) -> np.ndarray:
    picture = np.asarray(picture)
    return np.moveaxis(picture, 0, -1).clip(0, 1) if picture.dtype.kind == "f" else picture
