import numpy as np
import pandas as pd
import pytest

from splitpoint.offloading import AccuracyModel
from splitpoint.study.accuracy_study import accuracy_fit, loss_of_the_wrong_curve, on_released_scale


def made_up_samples(midpoints, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame([dict(prompt=f"p{i}", split_point=s, num_steps=50,
                              pai=float(AccuracyModel(0.05, b).pai(4 * s)) + rng.normal(0, 0.01))
                         for i, b in enumerate(midpoints) for s in range(0, 51, 5) for _ in range(3)])


def test_scale():
    assert on_released_scale(made_up_samples([100])).n.max() == 200


def test_fit_and_its_interval_follow_the_prompts():
    rng = np.random.default_rng(1)
    samples = on_released_scale(made_up_samples(rng.normal(100, 12, 25)))
    fit, table = accuracy_fit(samples, resamples=100)
    assert table.loc["midpoint", "low"] < fit.model.midpoint < table.loc["midpoint", "high"]
    width = table.loc["midpoint", "high"] - table.loc["midpoint", "low"]
    assert width == pytest.approx(2 * 1.96 * 12 / 5, rel=0.4), "the spread of 25 prompts, not of 825 samples"


def test_no_loss_with_the_right_curve_and_none_negative():
    curve = AccuracyModel(0.0413, 71.44)
    assert loss_of_the_wrong_curve(curve, curve, num_seeds=10).lost_s.abs().max() < 1e-9
    lost = loss_of_the_wrong_curve(curve, AccuracyModel(0.03, 130), num_seeds=10).lost_s
    assert (lost >= -1e-9).all() and lost.mean() > 0.1
