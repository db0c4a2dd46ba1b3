"""Simulated requests a second on one core, and seconds a decision: ``python benchmarks/edge_requests_per_second.py``.

Each figure is the median of several runs, with the fastest and the slowest; the last column is the ratio to the first
row of the same run, which other work on the machine disturbs less.
"""

import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from splitpoint.edge import Edge, Poisson, draw_paths, make_policy, price_bound, simulate
from splitpoint.edge.policies import StatePrice
from splitpoint.offloading import published_latency

REPEATS = 5
EDGE = Edge(published_latency()[0].shared_by(16))


def seconds(function) -> np.ndarray:
    """Of each of several calls."""
    spent = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        spent.append(time.perf_counter() - start)
    return np.array(spent)


def throughput() -> None:
    """One edge, 256 replications side by side: the price rules and one that looks at everybody's remaining steps."""
    arrivals = Poisson(8.0, 60.0)
    paths = draw_paths([EDGE], arrivals, 0, 256)
    requests, first = sum(map(len, paths)), None
    named = {
        "posted price": make_policy("posted_price", [EDGE], arrivals),
        "price from batch and compute": StatePrice(0.05, 1.0),
        "early-exit re-planning": make_policy("replanning", [EDGE]),
        "fluid re-solving": make_policy("fluid_resolving", [EDGE], arrivals),
    }
    for name, policy in named.items():
        rate = requests / seconds(lambda policy=policy: simulate([EDGE], paths, policy))
        first = first or np.median(rate)
        ratio = np.median(rate) / first
        print(f"{name:30s} {np.median(rate):9.0f} requests/s ({rate.min():.0f} to {rate.max():.0f}), {ratio:.2f}")


def fleet() -> None:
    """A million requests over a thousand edges."""
    edges, arrivals = [EDGE] * 1000, Poisson(8000.0, 125.0)
    paths = draw_paths(edges, arrivals, 0)
    policy = make_policy("posted_price", edges, arrivals)
    spent = seconds(lambda: simulate(edges, paths, policy))
    print(f"{len(paths[0])} requests, 1000 edges: {np.median(spent):.1f} s ({spent.min():.1f} to {spent.max():.1f})")


def decisions() -> None:
    """Milliseconds a decision when asked one by one, as a running edge asks."""
    arrivals = Poisson(8.0, 10.0)
    (path,) = draw_paths([EDGE], arrivals, 0)
    for name in ("posted_price", "replanning", "fluid_resolving", "bayes_selector", "hindsight_duals", "rollout"):
        policy, spent = make_policy(name, [EDGE], arrivals), []

        def timed(observation, policy=policy, spent=spent):
            start = time.perf_counter()
            decision = policy(observation)
            spent.append(time.perf_counter() - start)
            return decision

        gain = simulate([EDGE], [path], timed).gain_s.sum()
        share = gain / price_bound([EDGE], path)
        print(f"{name:30s} {1000 * np.median(spent):8.2f} ms a decision, {share:.2f} of the bound on this path")


if __name__ == "__main__":
    throughput()
    fleet()
    decisions()
