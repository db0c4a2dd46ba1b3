import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitpoint.offloading import LatencyModel, fit_latency, sample_instance, solve
from splitpoint.offloading.curves import TwoPieceLatency
from splitpoint.offloading.fits import fit_two_piece, line_error
from splitpoint.offloading.hardware import Curve, latency_fits, measured_profiles, read_profile

HEADER = "device,architecture,dtype,mode,guidance,batch_size,repeat,status,step_s\n"


def write(tmp_path, text):
    path = tmp_path / "machine.csv"
    path.write_text(text)
    return path


def rows(line, noise, rng, sizes=(1, 2, 4, 8, 16), repeats=20, mode="eager"):
    return "".join(
        f"box,mini,fp32,{mode},True,{b},{r},ok,{line.step_latency_s(b) + rng.normal(0, noise)}\n"
        for b in sizes
        for r in range(repeats)
    )


def test_fits_recover_known_lines_within_their_intervals(tmp_path):
    """In at least 85 of 100 synthetic profiles; nominal are 95."""
    rng, line, hits = np.random.default_rng(0), LatencyModel(0.02, 0.05), 0
    for _ in range(100):
        (fit,) = latency_fits(write(tmp_path, HEADER + rows(line, 0.002, rng))).values()
        low, high = fit.intervals["slope_s"]
        start, end = fit.intervals["intercept_s"]
        hits += low <= 0.02 <= high and start <= 0.05 <= end
    assert hits >= 85


def test_curves_are_kept_apart_and_end_where_memory_did(tmp_path):
    rng, line = np.random.default_rng(0), LatencyModel(0.02, 0.05)
    text = HEADER + rows(line, 0, rng) + rows(line, 0, rng, mode="compile")
    text += "box,mini,fp32,compile,True,32,0,out_of_memory,\n"
    curves = read_profile(write(tmp_path, text))
    assert [key[3] for key in curves] == ["eager", "compile"]
    assert [curve.ends_at for curve in curves.values()] == [None, 32]
    assert curves[("box", "mini", "fp32", "eager", "True")].medians()[0].tolist() == [1, 2, 4, 8, 16]


def test_lines_go_through_medians_up_to_the_limit_included(tmp_path):
    text = HEADER + "".join(
        f"box,mini,fp32,eager,True,{b},{r},ok,{s}\n" for b in (1, 2, 4, 8) for r, s in enumerate((b, b, 50))
    )  # one repeat in three was disturbed
    (fit,) = latency_fits(write(tmp_path, text), max_batch=4).values()
    assert (fit.model.slope_s, fit.model.intercept_s) == pytest.approx((1, 0), abs=1e-9) and len(fit.residuals) == 3


@pytest.mark.parametrize(
    "text, message",
    [
        (HEADER.replace("dtype,", ""), "machine.csv: column 'dtype' is missing"),
        (HEADER.replace("step_s", "step_ms"), "column 'step_ms' has another unit, valid is seconds"),
        (HEADER, "no rows"),
        (HEADER + "box,mini,fp32,eager,True,1,0,ok,-0.1\n", r"line 2: step_s='-0.1' is outside \(0, inf\)"),
        (HEADER + "box,mini,fp32,eager,True,1,0,ok,0\n", r"line 2: step_s='0' is outside \(0, inf\)"),
        (HEADER + "box,mini,fp32,eager,True,1,0,ok,nan\n", "line 2: step_s='nan' is not a finite number"),
        (HEADER + "box,mini,fp32,eager,True,1,0,ok,fast\n", "step_s='fast'"),
        (HEADER + "box,mini,fp32,eager,True,1,0,ok\n", "line 2: step_s=None is not a finite number"),
        (HEADER + "box,mini,fp32,eager,True,1.5,0,ok,1\n", "batch_size='1.5'"),
        (HEADER + "box,mini,fp32,eager,True,0,0,ok,1\n", "batch_size='0'"),
        (HEADER + "box,mini,fp32,eager,True,1,0,late,1\n", "status='late' is not one of ok, out_of_memory"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_profile(write(tmp_path, text))


@given(st.sampled_from([2.0, 4, 8, 12, 16]), st.floats(2, 3), st.floats(0, 0.1), st.floats(0.2, 1))
def test_a_bent_line_is_found(bend, at_bend, below, above):
    truth = TwoPieceLatency(bend, at_bend, below, above)  # above 0 at batch 1, at least 2 - 15 * 0.1 s
    sizes = np.array([1.0, 2, 4, 6, 8, 12, 16, 18])
    found = fit_two_piece(sizes, truth.step_latency_s(sizes))
    np.testing.assert_allclose(found.step_latency_s(sizes), truth.step_latency_s(sizes), atol=1e-9)
    assert found.bend == bend
    np.testing.assert_allclose(found.shared_by(4).step_latency_s(sizes), truth.step_latency_s(sizes) / 4, atol=1e-9)


def test_a_bent_edge_can_be_planned_for():
    from dataclasses import replace

    instance = sample_instance(6, 8, np.random.default_rng(0))
    bent = replace(instance, edge=TwoPieceLatency(3, 0.02, 0.001, 0.02))
    assert utility(bent, solve(bent)) >= utility(bent, solve(instance)) - 1e-9
    assert utility(bent, solve(bent)) == pytest.approx(utility(bent, solve(bent, "brute_force")))


def utility(instance, plan):
    from splitpoint.offloading import evaluate

    return evaluate(instance, plan).utility


def test_two_piece_needs_four_sizes():
    with pytest.raises(ValueError, match="3 sizes"):
        fit_two_piece([1, 2, 3], [1, 2, 3])


def test_a_curve_is_fitted_to_its_medians_up_to_a_batch():
    batch = np.repeat([1.0, 2, 4, 8, 24], 3)
    seconds = 0.02 * batch + 0.05 + np.tile([-0.001, 0, 0.004], 5) + 9 * (batch > 18)
    fit = Curve(batch, seconds).fit()
    assert (fit.model.slope_s, fit.model.intercept_s) == pytest.approx((0.02, 0.05)) and len(fit.residuals) == 4
    assert Curve(batch, batch - 0.5).fit(nonnegative=True).model.intercept_s == 0
    with pytest.raises(ValueError, match="2 points; at least 3"):
        Curve(batch, seconds).fit(max_batch=2)


def test_line_error_by_hand():
    fit = fit_latency([1, 2, 3, 4], [1, 2, 3, 4])
    np.testing.assert_allclose(line_error(fit.model, [8, 10], [10, 10]), [-0.2, 0], atol=1e-9)


def test_users_of_a_measured_edge_are_slower_by_the_published_ratios():
    line = LatencyModel(0.002, 0.003)
    profiles = measured_profiles(line)
    assert profiles.device_steps_s[0] / 0.005 == pytest.approx(119.4887566 / 50.2270994, rel=1e-6)
    instance = sample_instance(8, 4, np.random.default_rng(0), profiles=profiles)
    assert instance.edge.step_latency_s(1) == pytest.approx(0.005 / 4)
    assert np.isin(instance.device_step_s.round(9), profiles.device_steps_s.round(9)).all()
