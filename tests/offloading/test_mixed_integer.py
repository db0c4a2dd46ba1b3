import subprocess
import sys

import numpy as np
import pytest

from splitpoint.offloading import Instance, LatencyModel, SystemParameters, sample_instance, solve

MILP = "from splitpoint.offloading import *; print(solve(released_instance(3, 4, 0), 'milp').status)"
DIRECTLY = """
import cvxpy as cp
from splitpoint.offloading import quiet_highs
quiet_highs()
n = cp.Variable(boolean=True)
print(round(cp.Problem(cp.Maximize(n), [n <= 1]).solve(solver=cp.HIGHS)))
"""


def run(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize(
    "code, printed",
    [
        (MILP, "optimal\n"),
        (DIRECTLY, "1\n"),
        ("print('before'); " + MILP + "; print('after')", "before\noptimal\nafter\n"),
    ],
)
def test_the_solver_has_no_banner(code, printed):
    done = run(code)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


def test_a_program_can_be_solved_after_another_solve_on_all_threads():
    done = run(DIRECTLY.replace("boolean=True", "") + MILP + DIRECTLY + MILP.replace("3, 4", "4, 4"))
    assert done.stdout == "1\noptimal\n1\noptimal\n", done.stderr


def test_a_process_without_standard_output_can_solve():
    code = (
        "import os; os.close(1); from splitpoint.offloading import *; "
        "plan = solve(released_instance(3, 4, 0), 'milp'); os.write(2, plan.status.encode())"
    )
    done = run(code)
    assert done.stderr == "optimal", done.stderr


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-10])
def test_the_unit_of_time_does_not_change_the_plan(scale):
    """Utilities of a billionth of a second are far below a solver's tolerances."""
    seconds = sample_instance(6, 4, np.random.default_rng(2), SystemParameters(prompt_bits=0, intermediate_bits=0))
    edge = LatencyModel(scale * seconds.edge.slope_s, scale * seconds.edge.intercept_s)
    small = Instance(edge, scale * seconds.device_step_s, scale * seconds.alpha, seconds.arrival_s, seconds.parameters)
    for whole in (False, True):
        plans = [solve(window, "milp", whole_steps=whole) for window in (seconds, small)]
        assert plans[0].granted.any() and np.array_equal(plans[0].granted, plans[1].granted)
        np.testing.assert_allclose(plans[0].split_points, plans[1].split_points, atol=1e-3)
    assert (plans[1].split_points == np.round(plans[1].split_points)).all()
