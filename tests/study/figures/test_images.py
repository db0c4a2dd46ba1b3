import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from splitpoint.study.figures.images import (
    PARTS,
    pai_curves,
    pai_panels,
    picture_grid,
    schedule_panels,
    split_animation,
    split_grid,
)

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


def table():
    cells = [(prompt, user, split) for prompt in ("cat", "dog") for user in ("ann", "bob") for split in (0, 5, 10)]
    frame = pd.DataFrame(cells, columns=["prompt", "user", "split_point"]).assign(num_steps=10)
    for place, part in enumerate(PARTS):
        frame[part] = frame["split_point"] / 20 + place + (frame["prompt"] == "dog") * 0.1
    return frame


def test_a_split_grid_shows_a_row_a_user_and_a_column_a_split_point():
    pictures = np.random.default_rng(0).random((3, 2, 3, 8, 8))  # (splits, users, channels, height, width)
    figure = split_grid(pictures, ["ann", "bob"], [0, 5, 10], 10, "cat")
    assert len(figure.axes) == 6
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), np.moveaxis(pictures[1, 0], 0, -1))
    assert [ax.get_title() for ax in figure.axes[:3]] == ["n = 0\nall edge", "n = 5", "n = 10\nall device"]
    assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["ann", "bob"]


def test_the_split_point_moves_there_and_back_in_sharp_pictures():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 8, 8)) / 255
    film = Image.open(io.BytesIO(split_animation(pictures, ["ann", "bob"], [0, 5, 10], 10, "rocket", scale=3)))
    assert film.n_frames == 4 and film.info["loop"] == 0
    for number, split in enumerate((0, 1, 2, 1)):
        film.seek(number)
        frame = np.asarray(film.convert("RGB"))
        for place in range(2):
            left = 6 + place * (24 + 6)
            drawn = frame[40 : 40 + 24, left : left + 24]
            whole = np.moveaxis(pictures[split, place] * 255, 0, -1).round().repeat(3, 0).repeat(3, 1)
            np.testing.assert_array_equal(drawn, whole)
    with pytest.raises(ValueError, match=r"scale=1\.5"):
        split_animation(pictures, ["ann", "bob"], [0, 5, 10], 10, "rocket", scale=1.5)


def test_a_grid_takes_byte_pictures_too():
    figure = picture_grid([[np.full((8, 8, 3), 255, np.uint8)]])
    assert figure.axes[0].images[0].get_array().max() == 255


def test_the_mean_curve_runs_through_the_mean_of_the_prompts():
    ax = pai_curves(table())
    mean = next(line for line in ax.lines if "mean" in str(line.get_label()))
    np.testing.assert_allclose(mean.get_xdata(), [0, 5, 10])
    np.testing.assert_allclose(mean.get_ydata(), [0.05, 0.3, 0.55])
    assert len(ax.lines) == 4 and "N = 10" in ax.get_xlabel()  # two prompts, the mean, and the legend's sample


def test_panels_show_every_part_that_was_measured():
    assert len(pai_panels(table()).axes) == 4
    assert len(pai_panels(table().drop(columns="style_ok")).axes) == 3


def test_schedules_are_drawn_against_step_and_noise():
    rows = table().assign(n=lambda t: 20 * t.split_point, sigma=lambda t: t.split_point / 10)
    figure = schedule_panels({"one": rows, "other": rows.assign(pai=0.5)})
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [0.05, 0.3, 0.55])
    np.testing.assert_allclose(right.lines[0].get_xdata(), [0.5, 1.0])  # no noise has no place on a logarithmic axis
    assert right.get_xscale() == "log" and [t.get_text() for t in left.get_legend().get_texts()] == ["one", "other"]
