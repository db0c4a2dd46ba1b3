"""Machines by name: which series is meant, the three models of it, populations and scenarios."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from splitpoint.offloading import LatencyModel, evaluate, hardware, published_profiles, solve
from splitpoint.offloading.curves import TableLatency, TwoPieceLatency
from splitpoint.offloading.fits import fit_floor, line_error
from splitpoint.offloading.hardware import POPULATIONS, RELEASED_DEVICES, Scenario

SIZES = np.array([1.0, 2, 4, 8, 12, 16])


def test_a_name_means_one_machine_with_or_without_its_maker():
    a100 = hardware.edge("A100", software="compiled")
    assert a100 is hardware.edge("nvidia a100", "compiled")
    assert (a100.name, a100.software, a100.scope) == ("A100", "compiled", "denoise_loop")
    assert a100.batch.tolist() == [1, 4, 16] and a100.largest_batch == 16
    rates = [float(row["published_value"]) for row in a100.rows]
    assert a100.seconds == pytest.approx(1 / np.array(rates)), "it/s counts steps of the whole batch"
    assert all(row["source"] and row["source_version"] for row in a100.rows)


def test_steps_alone_are_preferred_to_whole_runs():
    both = [m for m in hardware.machines() if m.name == "T4" and m.software == "eager" and m.rows[0]["dtype"] == "fp16"]
    assert {m.scope for m in both} == {"denoise_loop", "end_to_end"}
    assert hardware.edge("T4").scope == "denoise_loop"
    assert hardware.edge("A100 40GB").scope == "end_to_end", "there is nothing else, and it says so"


def test_of_equal_scopes_the_one_with_most_sizes():
    vanilla = [m for m in hardware.machines() if m.name == "A100 40GB" and m.software == "vanilla"]
    assert sorted(len(m.batch) for m in vanilla) == [3, 6] and len(hardware.edge("A100 40GB", "vanilla").batch) == 6


def test_two_numbers_of_steps_give_the_time_of_steps_alone():
    machine = hardware.edge("A100 40GB", "aitemplate")
    ms = {(r["num_steps"], r["batch_size"]): float(r["published_value"]) for r in machine.rows}
    assert len(ms) == 8 and machine.scope == "difference"
    for batch, seconds in zip(machine.batch, machine.seconds):
        long, short = ms["50", f"{batch:g}"], ms["25", f"{batch:g}"]
        assert seconds == pytest.approx((long - short) / 25 / 1000)
        assert seconds < long / 50 / 1000, "what runs once a picture is gone"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: hardware.edge("A1000"), "name='A1000' is unknown; there are: .*A100"),
        (lambda: hardware.edge("iPhone 13"), "name='iPhone 13' is unknown"),
        (lambda: hardware.edge("A100", "tensorrt"), "software='tensorrt' is unknown; there are: eager"),
        (lambda: hardware.edge("A100", model="sd3"), "model='sd3' is unknown; there are: sd, sdxl"),
        (lambda: hardware.edge("T4", model="sdxl"), "name='T4' is unknown"),
        (lambda: hardware.device("iPhone 15 Pro Max"), "name='iPhone 15 Pro Max' is unknown"),
        (lambda: hardware.population("everybody"), "name='everybody' is unknown; there are: phones"),
        (lambda: hardware.scenario(num_steps=1), r"num_steps=1 is outside \[2"),
    ],
)
def test_what_was_not_published_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_device_is_its_fastest_published_step_at_batch_1():
    assert hardware.device("iPhone 14 Pro Max").step_s == pytest.approx(1 / 2.69)
    assert hardware.device("Intel Core i7-12700").step_s == 2.85
    assert hardware.device("Intel Core i7-12700", "ncnn low memory").step_s == 4.85
    assert hardware.device("Samsung Galaxy S24").rows[0]["architecture"] == "sd-1.5", "sd-2.1 was faster"
    assert hardware.device("iPhone 15 Pro Max", model="sdxl").rows[0]["resolution_px"] == "768x768"
    with pytest.raises(ValueError, match="batch 1 of A10, eager, was not published"):
        _ = hardware.edge("A10").step_s


def test_published_digits_say_how_sure_a_step_is():
    rate = hardware.device("iPhone 14 Pro Max")
    assert rate.rounding_s == pytest.approx((1 / 2.695, 1 / 2.685))
    whole = hardware.device("MacBook Pro (M2)")  # 23 whole seconds for 50 steps
    assert whole.rounding_s == pytest.approx((22.5 / 50, 23.5 / 50))
    for name in ("Samsung Galaxy S25", "OnePlus 13", "iPad Pro (M1)"):
        low, high = hardware.device(name).rounding_s
        assert low < hardware.device(name).step_s < high


@given(st.floats(0.005, 0.05), st.floats(0, 0.02), st.floats(1.15, 1.9))
def test_a_floor_is_found(slope, intercept, factor):
    floor = factor * (slope + intercept)
    assume(floor < 4 * slope + intercept)  # level at batch 1 or 2, no further
    seconds = np.maximum(floor, slope * SIZES + intercept)
    found = fit_floor(SIZES, seconds)
    assert isinstance(found, TwoPieceLatency)
    np.testing.assert_allclose(found.step_latency_s(SIZES), seconds, rtol=1e-6)
    assert found.slope_below_s == 0 and found.slope_above_s == pytest.approx(slope)


@given(st.floats(0.005, 0.05), st.floats(0, 0.02), st.floats(0, 1.05))
def test_no_floor_where_there_is_none(slope, intercept, factor):
    seconds = np.maximum(factor * (slope + intercept), slope * SIZES + intercept)
    assert isinstance(fit_floor(SIZES, seconds), LatencyModel)


def test_a_floor_never_fits_worse_than_the_line_and_the_table_fits_exactly():
    bent = 0
    for machine in hardware.machines():
        if len(machine.batch) < 3:
            continue
        errors = [
            np.abs(line_error(model, machine.batch, machine.seconds)).max()
            for model in (machine.table(), machine.floor(), machine.line())
        ]
        assert errors[0] < 1e-12 and errors[1] <= errors[2] + 1e-12, machine.name
        bent += isinstance(machine.floor(), TwoPieceLatency)
    assert bent >= 5


def test_a_table_is_straight_between_what_was_published():
    table = TableLatency((1.0, 4.0, 16.0), (0.02, 0.07, 0.25))
    inside = np.linspace(1, 16, 40)
    np.testing.assert_allclose(table.step_latency_s(inside), np.interp(inside, table.batch, table.seconds))
    assert table.step_latency_s([[20.0]]) == pytest.approx(0.25 + 4 * 0.18 / 12)
    assert table.shared_by(2).step_latency_s(4) == pytest.approx(0.035)


@pytest.mark.parametrize("batch, seconds", [((1,), (1,)), ((1, 1), (1, 2)), ((1, 2), (1,)), ((1, 2), (0, 1))])
def test_bad_tables_are_refused(batch, seconds):
    with pytest.raises(ValueError, match=r"batch|seconds"):
        TableLatency(batch, seconds)


@pytest.mark.parametrize("name", [*POPULATIONS, RELEASED_DEVICES])
def test_populations_are_published_devices_with_weights(name):
    devices, weights = hardware.population(name)
    steps = [float(each.step_latency_s(1)) for each in devices]
    assert len(devices) == len(weights) and sum(weights) == pytest.approx(1) and min(weights) > 0
    if name in POPULATIONS:
        assert steps == sorted(steps)
        assert set(steps) == {hardware.device(each).step_s for each in POPULATIONS[name]}


def test_the_released_devices_are_the_released_ones():
    devices, weights = hardware.population(RELEASED_DEVICES)
    released = published_profiles()
    assert devices == released.devices and np.allclose(weights, released.weights)


def test_devices_are_drawn_by_their_weights():
    scenario = hardware.scenario("A100", "compiled")
    devices, weights = hardware.population(scenario.population)
    drawn = scenario.sample(4000, np.random.default_rng(0)).device_step_s
    shares = [np.isclose(drawn, each.step_latency_s(1)).mean() for each in devices]
    np.testing.assert_allclose(shares, weights, atol=0.03)


def test_no_batch_is_planned_that_was_not_published():
    scenario = hardware.scenario("H100 PCIe MIG 1g.10gb", "vanilla", "a lab's laptops")
    assert scenario.parameters.max_batch == 4
    plans = [solve(scenario.sample(20, np.random.default_rng(seed))) for seed in range(20)]
    assert max(plan.granted.sum() for plan in plans) <= 4


def test_fewer_steps_are_the_same_run_in_larger_steps():
    """Without a hand-over, everything that a window is worth shrinks with the number of steps, and no plan changes."""
    table = hardware.edge("A100", "compiled").table()
    for seed in range(10):
        gains, shares = [], []
        for steps in (200, 50):
            scenario = Scenario(table, 16, "phones of 2021–2025", num_steps=steps, packet_bits=0)
            window = scenario.sample(12, np.random.default_rng(seed))
            plan, local = solve(window), solve(window, "all_local")
            gains.append(evaluate(window, plan).utility - evaluate(window, local).utility)
            shares.append(plan.split_points / steps)
        assert gains[1] == pytest.approx(gains[0] / 4, rel=1e-4)
        np.testing.assert_allclose(shares[0], shares[1], rtol=1e-9)
