"""Tables of named machines: against the published numbers, brute force and what must hold of any loss."""

import numpy as np
import pytest

from splitpoint.offloading import LatencyModel, evaluate, hardware, published_latency, solve
from splitpoint.offloading.hardware import Scenario
from splitpoint.study import hardware as study
from splitpoint.study.sweeps import reward_sweep

FEW = (("A100 40GB", "compiled"), ("A100 40GB", "vanilla"), ("T4", "eager"))


@pytest.fixture
def losses(scratch_project):
    return study.pair_losses("pairs", FEW, seeds=8)


def test_line_table_is_the_least_squares_line_in_milliseconds():
    machine = hardware.edge("A100", "compiled")
    (row,) = study.line_table([machine]).itertuples(index=False)
    k, h = np.polyfit(machine.batch, machine.seconds, 1)
    assert (row[4], row[6]) == pytest.approx((1e3 * k, 1e3 * h)) and row[3] == "1,4,16"
    errors = np.abs((k * machine.batch + h) / machine.seconds - 1)
    assert row[9] == pytest.approx(errors.max()) and row[10] == pytest.approx(0, abs=1e-12)
    assert row[11] == pytest.approx(1e3 * machine.seconds[0])


def test_points_behind_a_machine_carry_their_source():
    table = study.point_table([hardware.edge("A100 40GB", "aitemplate")])
    assert len(table) == 8 and table["source"].str.startswith("facebookincubator/AITemplate").all()
    assert table["licence"].eq("Apache-2.0").all() and table["num_steps"].isin(["25", "50"]).all()


def test_device_table_rises_and_names_what_a_step_holds():
    table = study.device_table("phones of 2021–2025")
    assert table["step (s)"].is_monotonic_increasing and set(table["scope"]) == {
        "unet_only",
        "denoise_loop",
        "end_to_end",
    }
    assert table.set_index("device").loc["iPhone 14 Pro Max", "rounding"] == "± 0.2 %"


def test_resemblance_is_the_nearest_line_and_says_none_beyond_a_tenth():
    table = study.resemblance()
    assert len(table) == 11
    for index, row in table.iterrows():
        released = published_latency()[index]
        k, h, step = 1e3 * released.slope_s, 1e3 * released.intercept_s, 1e3 * float(released.step_latency_s(1))
        assert row["distance"] == pytest.approx(max(abs(row["its k (ms)"] / k - 1), abs(row["its h (ms)"] - h) / step))
        every = [max(abs(1e3 * m.line().slope_s / k - 1), abs(1e3 * m.line().intercept_s - h) / step)
                 for m in study.edge_machines()]  # fmt: skip
        assert row["distance"] == pytest.approx(min(every))
        assert (row["resembles"] == "none") == (min(every) > 0.1)
    assert "none" in set(table["resembles"]) and len(set(table["resembles"])) > 1


def test_the_released_edge_is_faster_than_every_named_one():
    table = study.released_against_named()
    first = table.iloc[0]
    assert first["released"] == pytest.approx(1e3 * published_latency()[0].step_latency_s(1) / 16)
    assert first["released"] < first["named, least"] and first["named below"] == 0
    assert ((table["named, least"] <= table["median"]) & (table["median"] <= table["most"])).all()
    assert study.released_against_named(1).iloc[0]["named below"] > 0


def test_nothing_is_lost_by_the_truth_and_never_gained_by_anything_else(losses):
    assert (losses["lost_s"] >= -1e-9).all()
    right = losses[losses["truth"] == losses["believed"]]
    assert len(right) == 3 * 8 and right["lost_s"].abs().max() < 1e-9
    assert (right["granted"] == right["granted_best"]).all()
    matrix = study.loss_matrix(losses)
    assert list(matrix.index) == list(matrix.columns) and np.allclose(np.diag(matrix), 0, atol=1e-9)
    assert matrix.loc["T4, eager", "A100 40GB, compiled"] > 1 > matrix.loc["A100 40GB, compiled", "T4, eager"]


def test_a_loss_is_the_difference_of_two_plans_in_the_true_window(losses):
    machine, believed = hardware.edge("T4"), hardware.edge("A100 40GB", "vanilla")
    scenario = Scenario(machine.table(), 16, "phones of 2021–2025")
    window = scenario.sample(12, np.random.default_rng([3, 12]))
    wrong = solve(Scenario(believed.table(), 16, "phones of 2021–2025").sample(12, np.random.default_rng([3, 12])))
    row = losses[(losses.truth == "T4, eager") & (losses.believed == "A100 40GB, vanilla") & (losses.seed == 3)].iloc[0]
    assert row["granted_best"] == solve(window).granted.sum() and row["granted"] <= 16
    best = evaluate(window, solve(window, "brute_force")).utility
    assert row["gain_s"] == pytest.approx((best - evaluate(window, solve(window, "all_local")).utility) / 12)
    assert wrong.granted.sum() != row["granted_best"]


def test_forms_of_one_machine_lose_little_and_the_table_nothing(scratch_project):
    table = study.form_losses("forms", FEW[:1], num_users=(1, 4), seeds=6)
    assert set(table["form"]) == set(study.FORMS) and set(table["num_users"]) == {1, 4}
    share = study.loss_matrix(table, "form").iloc[0]
    assert share["table"] == pytest.approx(0, abs=1e-12) and 0 <= share["line"] < 0.05
    with pytest.raises(ValueError, match="seeds=0"):
        study.form_losses("forms", FEW[:1], seeds=0)


def test_sweeps_take_a_scenario_and_gains_are_paired(scratch_project):
    scenario = hardware.scenario("RTX 4090", "eager", "a lab's laptops")
    table = reward_sweep("named", num_users=(4,), num_edge_gpus=(1,), num_seeds=5, methods=("exact", "all_local"),
                         **study.scenario_settings(scenario))  # fmt: skip
    gains = study.gain_over_local(table)
    assert len(gains) == 5 and (gains["gain_s"] >= 0).all()
    window = scenario.sample(4, np.random.default_rng([2, 4]))
    worth = [evaluate(window, solve(window, method)).utility for method in ("exact", "all_local")]
    assert gains.set_index("seed").loc[2, "gain_s"] == pytest.approx((worth[0] - worth[1]) / 4)
    with pytest.raises(ValueError, match="num_steps=50 is not 200"):
        study.scenario_settings(hardware.scenario(num_steps=50))


def test_who_is_served_counts_every_request():
    table = study.who_is_served(num_users=6, seeds=20)
    assert table["asked"].sum() == 120 and table["granted"].between(0, 1).all()
    assert table["step_s"].is_monotonic_increasing and set(table.index) == set(
        hardware.POPULATIONS["phones of 2021–2025"]
    )
    scenario = hardware.scenario("A100", "compiled")
    plans = [solve(scenario.sample(6, np.random.default_rng([seed, 6]))) for seed in range(20)]
    assert (table["asked"] * table["granted"]).sum() == pytest.approx(sum(p.granted.sum() for p in plans))


def test_fewer_steps_change_what_is_gained_and_hardly_who_is_served():
    table = study.steps_table(seeds=6, steps=(200, 50))
    latent = table.loc["latent"]
    assert latent.loc[50, "gain_s"] == pytest.approx(latent.loc[200, "gain_s"] / 4, rel=0.02)
    assert (table.loc["released", "gain_s"] <= latent["gain_s"]).all()


def test_gpus_side_by_side_are_no_faster_than_one_with_its_share():
    line = LatencyModel(0.03, 0.01)
    apart = study.side_by_side(line, 4, 10)
    assert apart.step_latency_s([1, 4, 5, 8, 9]) == pytest.approx([0.04, 0.04, 0.07, 0.07, 0.10])
    assert (apart.step_latency_s(np.arange(1, 11)) >= line.shared_by(4).step_latency_s(np.arange(1, 11))).all()
    table = study.pooled_or_apart((4, 16), seeds=5)
    assert (table["gain_s, apart"] <= table["gain_s, pooled"] + 1e-9).all()
    assert (table["pooled plan, apart"] <= table["gain_s, apart"] + 1e-9).all()
