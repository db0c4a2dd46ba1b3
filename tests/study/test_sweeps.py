import joblib
import numpy as np
import pandas as pd
import pytest

from splitpoint.offloading import Plan, SystemParameters, evaluate, sample_instance, solve
from splitpoint.offloading.solvers import _SOLVERS
from splitpoint.study.sweeps import optimality, reward_sweep, solve_times, solver_key


def sweep(name="sweep", **changes):
    return reward_sweep(
        name,
        **(
            dict(num_users=(4, 6), num_edge_gpus=(8,), num_seeds=25, methods=("exact", "greedy", "all_local", "random"))
            | changes
        ),
    )


def test_rows_are_what_a_direct_evaluation_gives(scratch_project):
    table = sweep()
    assert len(table) == 2 * 25 * 4
    row = table[(table.num_users == 6) & (table.seed == 21) & (table.method == "greedy")].iloc[0]
    instance = sample_instance(6, 8, np.random.default_rng([21, 6]))
    outcome = evaluate(instance, solve(instance, "greedy"))
    assert row.reward == outcome.reward and row.latency_s == pytest.approx(outcome.latency_s.mean(), rel=1e-12)
    drawn = table[(table.num_users == 6) & (table.method == "random")].set_index("seed")
    for seed in range(25):  # solvers that draw do so by the window's seed
        instance = sample_instance(6, 8, np.random.default_rng([seed, 6]))
        assert drawn.share_granted[seed] == solve(instance, "random", seed=seed).granted.mean()


def test_seeds_run_from_the_first_one(scratch_project):
    table = sweep(num_users=(4,), first_seed=100, methods=("all_local",))
    assert table.seed.tolist() == list(range(100, 125))


def test_the_sidecar_names_the_call(scratch_project, capsys):
    sweep(num_seeds=2, num_users=range(4, 6))
    assert "by `reward_sweep('sweep', num_users=range(4, 6), num_edge_gpus=(8,), …)`" in capsys.readouterr().out


def test_optimality_of_the_optimum_and_of_all_local(scratch_project):
    table = sweep(num_edge_gpus=(4, 16))
    assert (table[table.method == "exact"].optimality == 1).all()
    assert (table.optimality <= 1 + 1e-12).all()
    local = table[table.method == "all_local"]
    best = table[table.method == "exact"].set_index(["num_users", "num_edge_gpus", "seed"]).share_granted
    keys = local.set_index(["num_users", "num_edge_gpus", "seed"])
    assert (keys.optimality[best > 0] == 0).all()


def test_early_exit_is_judged_against_its_own_optimum(scratch_project):
    table = sweep(batching="early_exit", methods=("early_exit", "exact"))
    assert np.allclose(table[table.method == "early_exit"].optimality, 1)
    assert table[table.method == "exact"].optimality.max() <= 1 + 1e-9
    static = sweep(methods=("early_exit", "exact"))  # the same name, and not the table of the other batching
    assert (static[static.method == "exact"].optimality == 1).all()


def grant_first(instance, size):
    granted = np.arange(instance.num_users) < size
    return Plan(granted, np.where(granted, 120.0, 200.0))


def with_key(size, key):
    def solver(instance):
        return grant_first(instance, size)

    solver.key = key
    return solver


def test_a_solver_that_says_who_it_is_is_read_back(scratch_project, capsys, monkeypatch):
    tables = []
    for size, key in ((1, "first 1"), (2, "first 2"), (2, "first 2")):
        monkeypatch.setitem(_SOLVERS, "mine", with_key(size, key))
        tables.append(sweep(num_users=(4,), methods=("mine",)))
    assert [table.share_granted.mean() for table in tables] == [0.25, 0.5, 0.5]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["computed", "computed", "read"]


SIZE = 1


def by_a_number_elsewhere(instance):
    return grant_first(instance, SIZE)


def test_a_solver_that_does_not_is_never_read_back(scratch_project, capsys, monkeypatch):
    """What a function depends on (here a number of its module) cannot be seen from outside."""
    monkeypatch.setitem(_SOLVERS, "mine", by_a_number_elsewhere)
    with joblib.parallel_config(backend="sequential"):
        first = sweep(num_users=(4,), methods=("mine",))
        monkeypatch.setattr(f"{__name__}.SIZE", 3)
        second = sweep(num_users=(4,), methods=("mine",))
    assert (first.share_granted.mean(), second.share_granted.mean()) == (0.25, 0.75)
    out = capsys.readouterr().out
    assert out.count("mine: has no attribute `key`") == 2 and "read from" not in out


def test_two_agents_under_one_name_have_two_keys():
    from splitpoint.learning import load_agent

    keys = {solver_key("mine", load_agent(name).solve) for name in ("drl_convex", "dqn", "drl_convex")}
    assert len(keys) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_seeds=0), r"num_seeds=0 is outside \[1, inf\)"),
        (dict(batching="late"), "static, early_exit"),
        (dict(methods=("simplex",)), "method='simplex' is unknown"),
        (dict(methods=()), "methods is empty"),
        (dict(name="../../evil"), "name='../../evil' is no name"),
        (dict(num_users=(4, True)), "num_users=True is outside"),
        (dict(num_users=(4, 0)), "num_users=0"),
        (dict(num_edge_gpus=(1.5,)), "num_edge_gpus=1.5 is not a whole number"),
        (dict(num_users=()), "num_users is empty"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(changes, message, scratch_project):
    with pytest.raises(ValueError, match=message):
        sweep(**changes)
    assert not scratch_project.joinpath("results").exists()


def test_parameters_change_the_table(scratch_project):
    released, corrected = (sweep(parameters=SystemParameters(transmission=t)) for t in ("released", "corrected"))
    exact = [t[t.method == "exact"].reward.mean() for t in (released, corrected)]
    assert exact[1] > exact[0]


def test_optimality_by_hand():
    assert optimality(5, 10, 0) == 0.5
    assert optimality(-3, -3, -3) == 1
    assert optimality(-4, -3, -3) == -np.inf


def test_solve_times_stop_where_a_method_gives_up(scratch_project):
    methods = {"exact": {"method": "exact"}, "brute force": {"method": "brute_force"}}
    table = solve_times("times", num_users=(4, 16, 18), methods=methods, num_seeds=2)
    sizes = table.groupby("label").num_users.max()
    assert sizes["exact"] == 18 and sizes["brute force"] == 16
    assert isinstance(table, pd.DataFrame) and (table.solve_s > 0).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "magic"}, "method='magic' is unknown; there are: exact"),
        ({"method": "milp", "formulation": "loose"}, "formulation='loose' is unknown; there are: tight, gqap"),
    ],
)
def test_a_mistyped_method_does_not_pass_for_one_that_gives_up(options, message, scratch_project):
    with pytest.raises(ValueError, match=message):
        solve_times("times", num_users=(4,), methods={"exact": {"method": "exact"}, "typo": options}, num_seeds=2)


def test_times_of_the_packages_own_methods_are_read_back_whatever_they_are_called(scratch_project, capsys):
    options = dict(num_users=(4,), num_seeds=2, methods={"the exact one": {"method": "exact"}})
    first = solve_times("times", **options)
    pd.testing.assert_frame_equal(solve_times("times", **options), first)  # times: no second run has the same
    assert "anew" not in capsys.readouterr().out


def test_a_solver_of_ones_own_is_timed_too(scratch_project, monkeypatch):
    monkeypatch.setitem(_SOLVERS, "mine", with_key(2, "first 2"))
    assert len(solve_times("times", num_users=(4,), methods={"mine": {"method": "mine"}}, num_seeds=2)) == 2


def test_users_may_be_counted_by_numpy(scratch_project):
    options = dict(num_edge_gpus=(4,), num_seeds=1, methods=("all_local",))
    plain = reward_sweep("t", num_users=[2, 3], **options)
    pd.testing.assert_frame_equal(reward_sweep("t", num_users=np.arange(2, 4), **options), plain)
