import subprocess
import sys

import pytest

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
