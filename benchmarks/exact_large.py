"""The exact plan of a million users with a batch limit of 18: seconds, memory, and the same plan from a full sort.

``OMP_NUM_THREADS=1 python benchmarks/exact_large.py``
"""

import resource
import statistics
import time

import numpy as np

from splitpoint.offloading import Instance, SystemParameters, grant_gains, published_latency, solve

USERS, REPEATS = 1_000_000, 5


def main() -> None:
    rng = np.random.default_rng(0)
    edge = published_latency()[0].shared_by(16)
    device_step_s = rng.uniform(0.1, 0.35, USERS)
    alpha = rng.uniform(5, 70, USERS)
    instance = Instance(edge, device_step_s, alpha, rng.uniform(0, 1, USERS), SystemParameters())
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        plan = solve(instance)
        seconds.append(time.process_time() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"exact, {USERS:,} users: {statistics.median(seconds):.2f} processor seconds "
          f"({min(seconds):.2f} to {max(seconds):.2f}), at most {memory:.2f} GB in all")  # fmt: skip
    best, chosen = 0.0, np.array([], dtype=int)
    for size in range(1, instance.largest_batch + 1):
        gains = grant_gains(instance, [size])[0][0]
        top = np.argsort(-gains, kind="stable")[:size]
        if gains[top].sum() > best:
            best, chosen = gains[top].sum(), top
    print("the same users as by sorting all:", bool(np.array_equal(np.sort(chosen), np.flatnonzero(plan.granted))))


if __name__ == "__main__":
    main()
