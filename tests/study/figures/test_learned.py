"""Figures of the learned price draw its numbers."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from splitpoint.edge.learned_price import CONTEXT, LOADS
from splitpoint.learning.price_search import START
from splitpoint.study.figures.learned import shares_over_load


def test_shares_are_the_weights_and_lean_on_who_is_inside():
    slope = START.slope.copy()
    slope[len(LOADS) + CONTEXT.index("inside")], slope[len(LOADS) + CONTEXT.index("inside_if_busy")] = 0.4, 0.2
    weights = replace(START, slope=slope)
    figure = shares_over_load(weights)
    (left, right) = figure.axes
    assert left.lines[1].get_ydata() == pytest.approx(weights.share[: len(LOADS)])
    empty, half, full = (line.get_ydata() for line in right.lines)
    lean = 0.2 + 0.1 * (LOADS - LOADS[2])
    assert full - half == pytest.approx(lean) and half - empty == pytest.approx(lean)
    assert right.lines[0].get_xdata() == pytest.approx(np.exp(2 * LOADS))
    plt.close(figure)
