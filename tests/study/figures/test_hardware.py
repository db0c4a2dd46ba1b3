"""Figures of named machines draw what the tables hold."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from splitpoint.offloading import hardware
from splitpoint.offloading.hardware import Curve
from splitpoint.study import hardware as study
from splitpoint.study.figures import hardware as figures

FEW = (("A100 40GB", "compiled"), ("A100 40GB", "vanilla"), ("T4", "eager"))


def test_figures_draw_what_the_tables_hold(scratch_project):
    losses = study.pair_losses("pairs", FEW, seeds=2)
    edges = [hardware.edge(*pair) for pair in FEW]
    devices = [hardware.device(name) for name in ("iPhone 13", "Samsung Galaxy S24", "MacBook Pro (M2)")]
    ax = figures.named_steps(edges, devices, {"own": Curve(np.array([1.0, 2]), np.array([3.0, 5]))})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), edges[0].seconds)
    np.testing.assert_allclose(ax.lines[3].get_ydata(), [devices[0].step_s, devices[1].step_s])
    np.testing.assert_allclose(ax.lines[5].get_ydata(), [3, 5])
    lines = study.line_table(edges)
    ax = figures.line_plane(lines)
    assert sum(line.get_marker() == "*" for line in ax.lines) == 11
    bars = figures.software_bars(lines[:2]).patches
    assert [bar.get_height() for bar in bars] == pytest.approx([*lines["k (ms)"][:2], *lines["h (ms)"][:2]])
    ax = figures.loss_map(study.loss_matrix(losses))
    assert ax.texts[0].get_text() == "0.00" and len(ax.texts) == 9
    table = losses.rename(columns={"granted": "share_granted"})
    figure = figures.edge_panels({"edge": table})
    assert figure.axes[0].get_ylabel() == "gain over all-local (s per user)"
    plt.close("all")
