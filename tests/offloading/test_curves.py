import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from splitpoint.offloading import (
    AccuracyModel,
    LatencyModel,
    confidence_band,
    fit_accuracy,
    fit_latency,
    published_latency,
)

BATCHES = np.repeat([1.0, 2, 4, 8, 12, 16, 18], 5)


def test_latency_fit_is_exact_without_noise():
    fit = fit_latency(BATCHES, LatencyModel(0.03, 0.01).step_latency_s(BATCHES))
    assert (fit.model.slope_s, fit.model.intercept_s) == pytest.approx((0.03, 0.01), abs=1e-12)
    assert fit.r_squared == pytest.approx(1)


def test_latency_intervals_cover_the_truth_as_often_as_they_say():
    rng, truth, inside = np.random.default_rng(0), LatencyModel(0.03, 0.01), []
    for _ in range(400):
        fit = fit_latency(BATCHES, truth.step_latency_s(BATCHES) + rng.normal(0, 0.003, len(BATCHES)))
        low, high = fit.intervals["slope_s"]
        inside.append(low <= truth.slope_s <= high)
    assert 0.91 < np.mean(inside) < 0.985


def test_intervals_residuals_and_band_agree_with_scipy():
    seconds = 0.03 * BATCHES + 0.01 + np.random.default_rng(2).normal(0, 0.002, len(BATCHES))
    fit, known = fit_latency(BATCHES, seconds), stats.linregress(BATCHES, seconds)
    half = stats.t.ppf(0.975, len(BATCHES) - 2) * np.array([known.stderr, known.intercept_stderr])
    assert fit.intervals["slope_s"] == pytest.approx((known.slope - half[0], known.slope + half[0]))
    assert fit.intervals["intercept_s"] == pytest.approx((known.intercept - half[1], known.intercept + half[1]))
    np.testing.assert_allclose(fit.residuals, seconds - known.intercept - known.slope * BATCHES, atol=1e-12)
    assert fit.r_squared == pytest.approx(known.rvalue**2)
    low, high = confidence_band(fit, [0])  # an empty batch takes the intercept
    assert (low[0], high[0]) == pytest.approx(fit.intervals["intercept_s"])


def test_confidence_band_is_narrowest_at_the_mean_batch():
    rng = np.random.default_rng(1)
    fit = fit_latency(BATCHES, 0.03 * BATCHES + 0.01 + rng.normal(0, 0.002, len(BATCHES)))
    low, high = confidence_band(fit, [1, BATCHES.mean(), 40])
    width = high - low
    assert width[1] < width[0] < width[2]


def test_nonnegative_fit_goes_through_the_origin_where_the_plain_one_is_below():
    seconds = 0.05 * BATCHES - 0.02
    assert fit_latency(BATCHES, seconds).model.intercept_s == pytest.approx(-0.02)
    fit = fit_latency(BATCHES, seconds, nonnegative=True)
    assert fit.model.intercept_s == 0
    assert fit.model.slope_s == pytest.approx(BATCHES @ seconds / (BATCHES @ BATCHES))
    assert fit.intervals["intercept_s"] == (0, 0)
    noisy = [0.9, 2.2, 2.7, 4.3]  # intercept -0.15, but perhaps above 0
    upper = fit_latency([1, 2, 3, 4], noisy).intervals["intercept_s"][1]
    assert fit_latency([1, 2, 3, 4], noisy, nonnegative=True).intervals["intercept_s"] == (0, upper) > (0, 0)
    positive = 0.05 * BATCHES + 0.02
    assert fit_latency(BATCHES, positive, nonnegative=True).model == fit_latency(BATCHES, positive).model


def test_times_that_do_not_grow_with_the_batch_have_a_level_line():
    """A small network leaves a GPU idle: every batch takes the launches' time, give or take."""
    sizes, seconds = np.unique(BATCHES), np.array([5.2, 5.1, 5.0, 5.1, 4.9, 5.0, 4.8]) * 1e-3
    for nonnegative in (False, True):
        fit = fit_latency(sizes, seconds, nonnegative)
        assert fit.model.slope_s == 0 and fit.model.intercept_s == pytest.approx(seconds.mean())
        assert fit.intervals["slope_s"][0] == 0 <= fit.intervals["slope_s"][1]
        half = stats.t.ppf(0.975, 6) * seconds.std(ddof=1) / np.sqrt(7)
        assert fit.intervals["intercept_s"] == pytest.approx((seconds.mean() - half, seconds.mean() + half))
        assert fit.r_squared == pytest.approx(0) and (fit.covariance >= 0).all()


@given(st.floats(0.01, 0.3), st.floats(20, 180))
def test_accuracy_fit_recovers_the_curve(steepness, midpoint):
    split = np.linspace(0, 200, 11)
    truth = AccuracyModel(steepness, midpoint)
    fit = fit_accuracy(split, truth.pai(split))
    np.testing.assert_allclose(fit.model.pai(split), truth.pai(split), atol=1e-3)


def test_accuracy_intervals_cover_the_truth_as_often_as_they_say():
    rng, truth, inside = np.random.default_rng(0), AccuracyModel(0.05, 90), []
    split = np.linspace(0, 200, 21)
    for _ in range(200):
        intervals = fit_accuracy(split, truth.pai(split) + rng.normal(0, 0.02, len(split))).intervals
        inside.append([low <= getattr(truth, name) <= high for name, (low, high) in intervals.items()])
    assert np.all(np.abs(np.mean(inside, axis=0) - 0.95) < 0.04)


def test_published_lines():
    lines = published_latency()
    assert len(lines) == 11
    steps = [line.step_latency_s(1) for line in lines]
    assert np.argmin(steps) == 0
    assert sum(line.intercept_s < 0 for line in lines) == 4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: LatencyModel(-1, 0), r"slope_s=-1 .*\[0, inf\)"),
        (lambda: LatencyModel(float("nan"), 0), "slope_s=nan"),
        (lambda: LatencyModel(1, -2), "step of batch 1"),
        (lambda: AccuracyModel(0, 1), "steepness=0"),
        (lambda: LatencyModel(1, 1).shared_by(0), "num_gpus=0"),
        (lambda: fit_latency([1, 2], [1, 2]), "at least 3"),
        (lambda: fit_latency([1, 2, 3], [1, 2]), "one length"),
        (lambda: fit_latency([2, 2, 2], [1, 2, 3]), "single size"),
        (lambda: fit_latency([1, 2, 3], [1, -2, 3]), "positive"),
        (lambda: fit_accuracy([0, 1, np.nan], [0, 1, 1]), "split holds nan"),
        (lambda: fit_accuracy([0, 50, 100], [1, 0.5, 0.1]), "does not rise"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
