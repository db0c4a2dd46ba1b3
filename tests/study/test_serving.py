"""What is read off a running edge's log and its loads."""

import numpy as np
import pandas as pd
import pytest

from splitpoint.serving.conductor import Event
from splitpoint.study.serving import capacity_table, join_waits, largest_rate, system_of


def ask(time_s, name, steps=2):
    return Event("ask", time_s, (name,), (steps,), (steps,), ((0.1, 1.0, 0.5),))


def test_waits_to_join_are_in_steps_of_the_one_under_way():
    log = [
        ask(0.0, "a", 3),
        Event("begin", 0.01, ("a",)),
        ask(0.03, "b"),
        Event("end", 0.11, ()),
        Event("begin", 0.12, ("a", "b")),
        ask(0.2, "c"),
        ask(0.2, "d"),  # the second place is taken
        Event("cancel", 0.25, ("c",)),
        Event("end", 0.32, ()),
        Event("begin", 0.33, ("a", "b")),
        Event("end", 0.43, ("a", "b")),
        Event("begin", 0.44, ("d",)),
        Event("end", 0.54, ()),
    ]
    assert join_waits(log, 3) == pytest.approx([0.01 / 0.1, 0.09 / 0.1])
    assert join_waits(log, 4) == pytest.approx([0.01 / 0.1, 0.09 / 0.1, (0.44 - 0.2) / 0.2])


def test_the_largest_rate_lies_between_the_last_that_held_and_the_first_that_did_not():
    assert largest_rate([1.0, 2.0, 4.0], [1.0, 1.0, 4.0], 2.0) == pytest.approx(3.0)  # halfway in the logarithm
    assert largest_rate([1.0, 2.0], [0.5, 1.0], 2.0) == 2.0
    assert 0 < largest_rate([1.0, 2.0], [9.0, 1.0], 2.0) < 1.0
    assert 2.0 < largest_rate([2.0, 4.0], [1.0, np.inf], 2.0) < 3.0
    with pytest.raises(ValueError, match="bound_s=0"):
        largest_rate([1.0], [1.0], 0.0)


def test_of_two_systems_the_one_that_bears_more_is_said_to():
    rng, rows = np.random.default_rng(0), []
    for system, mu in (("fast", 10.0), ("slow", 2.0)):
        for rate in (0.0, 0.2 * mu, 0.5 * mu, 0.9 * mu):
            arrival = np.sort(rng.uniform(0, 60, 300))
            seconds = rng.exponential(1 / (mu - rate), 300)  # a queue of one server, as it is known in closed form
            rows += [dict(system=system, round=0, rate_hz=rate, arrival_s=a, seconds=s, outside_s=0.0, steps=3, asked=400)
                     for a, s in zip(arrival, seconds)]  # fmt: skip
    table = capacity_table(pd.DataFrame(rows), "slow", draws=200).set_index("system")
    assert table.ratio["slow"] == 1.0 and table.helped["fast"] == pytest.approx(0.75)
    assert table.ratio_low["fast"] < 5.0 < table.ratio_high["fast"]
    for system, mu in (("fast", 10.0), ("slow", 2.0)):  # thrice as late at two thirds of what can be served
        assert table.rate_hz_low[system] < 2 / 3 * mu < table.rate_hz_high[system]


def test_an_edge_that_takes_one_at_a_time_is_known_to_the_simulator():
    (edge,) = system_of(np.array([0.05])).edges
    assert edge.max_batch == 1 and edge.latency.step_latency_s(1) == pytest.approx(0.05)
    system = system_of(np.array([0.05, 0.04, 0.09]))
    assert system.table_s[0, 1:] == pytest.approx([0.05, 0.05, 0.09])
