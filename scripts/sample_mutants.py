"""What share of a random sample of wrong lines the tests of ``offloading`` and ``edge`` notice.

mutmut (its settings are in ``pyproject.toml``) makes some twelve thousand wrong lines there; to run the tests for each
takes seven hours. ``make mutants`` draws ``MUTANTS=500`` of them, lists the survivors and prints the share noticed with
Wilson's interval. Many survivors change no behaviour (a message's wording, one more bisection): it is a lower bound.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]


def verdicts() -> dict[str, int | None]:
    """Exit code of the tests by mutant; None where they have not been run."""
    found: dict[str, int | None] = {}
    for file in sorted((ROOT / "mutants" / "src").rglob("*.meta")):
        found |= json.loads(file.read_text())["exit_code_by_key"]
    return found


def run(*names: str) -> None:
    """mutmut on these mutants, in a copy of the sources that it lays under mutants/."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "mutants" / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run(["mutmut", "run", *names], cwd=ROOT, env=environment, check=True)


def main() -> int:
    """Draw, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=500, help="mutants to run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error(f"count={arguments.count} is below 1")
    if not (ROOT / "mutants" / "src").exists():
        run(
            "splitpoint.offloading.split.x_optimal_split__mutmut_1"
        )  # lays the copy and finds which test runs which line
    names = list(verdicts())
    random.Random(arguments.seed).shuffle(names)
    drawn = names[: arguments.count]
    run(*drawn)
    codes = verdicts()
    caught = [name for name in drawn if codes[name] not in (0, 33, None)]  # 0: tests pass, 33: no test runs the line
    rooms = Counter(name.split(".")[1] for name in drawn), Counter(name.split(".")[1] for name in caught)
    for name in sorted(set(drawn) - set(caught)):
        print("survived:", name)
    for room, count in rooms[0].items():
        print(f"{room}: {rooms[1][room]} of {count} noticed")
    low, high = binomtest(len(caught), len(drawn)).proportion_ci(method="wilson")
    print(f"together {len(caught)} of {len(drawn)}: {len(caught) / len(drawn):.0%} (95 %: {low:.0%} to {high:.0%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
