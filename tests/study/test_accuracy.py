from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from splitpoint.diffusion.accuracy import Calibration, load_calibration
from splitpoint.files import data_path
from splitpoint.offloading import AccuracyModel, SystemParameters, evaluate, sample_instance, solve
from splitpoint.study.accuracy import (
    accuracy_fit,
    loss_of_the_wrong_curve,
    on_released_scale,
    recalibrated,
    schedule_fits,
    schedule_samples,
)


def made_up_samples(midpoints, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        [
            dict(
                prompt=f"p{i}",
                split_point=s,
                num_steps=50,
                pai=float(AccuracyModel(0.05, b).pai(4 * s)) + rng.normal(0, 0.01),
            )
            for i, b in enumerate(midpoints)
            for s in range(0, 51, 5)
            for _ in range(3)
        ]
    )


def test_scale():
    assert on_released_scale(made_up_samples([100])).n.max() == 200


def test_fit_and_its_interval_follow_the_prompts():
    rng = np.random.default_rng(1)
    midpoints = rng.normal(100, 12, 25)
    samples = on_released_scale(made_up_samples(midpoints))
    fit, table = accuracy_fit(samples, resamples=400)
    assert table.loc["midpoint", "low"] < fit.model.midpoint < table.loc["midpoint", "high"]
    width = table.loc["midpoint", "high"] - table.loc["midpoint", "low"]
    expected = 2 * 1.96 * midpoints.std() / 5
    assert width == pytest.approx(expected, rel=0.1), "the spread of 25 prompts, not of 825 samples"


def test_an_interval_needs_resamples():
    with pytest.raises(ValueError, match=r"resamples=0 is outside \[1, inf\)"):
        accuracy_fit(on_released_scale(made_up_samples([100, 110])), resamples=0)


def test_no_loss_with_the_right_curve_and_none_negative():
    curve = AccuracyModel(0.0413, 71.44)
    assert loss_of_the_wrong_curve(curve, curve, num_seeds=10).lost_s.abs().max() < 1e-9
    lost = loss_of_the_wrong_curve(curve, AccuracyModel(0.03, 130), num_seeds=10).lost_s
    assert (lost >= -1e-9).all() and lost.mean() > 0.1
    truth = SystemParameters(accuracy=AccuracyModel(0.03, 130))
    instance = sample_instance(12, 8, np.random.default_rng([3, 12]), truth)
    plan = solve(replace(instance, parameters=SystemParameters(accuracy=curve)))
    best, reached = (evaluate(instance, p).utility for p in (solve(instance), plan))
    assert lost[3] == pytest.approx((best - reached) / 12)


def test_the_committed_calibration_gives_the_committed_index_again():
    samples, calibration = pd.read_csv(data_path("quality", "pai_mini.csv")), load_calibration()
    np.testing.assert_allclose(recalibrated(samples, calibration).pai, samples.pai, rtol=1e-3, atol=1e-5)
    wider = Calibration(calibration.real_score, 1.2 * calibration.real_distance)
    lower = recalibrated(samples, wider).pai < samples.pai
    assert lower[(samples.split_point > 0) & (samples.text_score > 0)].all()


def test_what_counts_at_the_hand_over_is_noise_when_it_is():
    """An index that depends on the noise alone crosses one half at one noise, whatever the spacing of the steps."""
    spacings = {"even": np.linspace(0, 50, 11), "late": 50 * np.linspace(0, 1, 11) ** 2}
    samples = {}
    for name, place in spacings.items():
        rows = [
            dict(
                prompt=f"p{i}",
                seed=0,
                split_point=5 * k,
                num_steps=50,
                sigma=0.03 * np.exp(place[k] / 8),
                pai=float(AccuracyModel(0.3, 25 + i / 10).pai(place[k])),
            )
            for i in range(6)
            for k in range(11)
        ]
        samples[name] = on_released_scale(pd.DataFrame(rows))
    table = schedule_fits(samples, resamples=20)
    assert table.half_sigma["late"] == pytest.approx(table.half_sigma["even"], rel=0.1)
    assert table.midpoint["late"] > table.midpoint["even"] + 20
    assert (table["midpoint low"] < table.midpoint).all() and (table.midpoint < table["midpoint high"]).all()


def test_every_schedule_of_the_committed_measurement_is_read():
    samples = schedule_samples(pd.read_csv(data_path("quality", "pai_mini.csv")))
    assert len(samples) == 5 and all(table.n.max() == 200 and len(table) == 880 for table in samples.values())
