"""The conductor against the simulator: the same requests, the same step times, the same events and decisions."""

import copy
import heapq
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitpoint.edge import Edge, EdgeCore, Poisson, Request, System, draw_paths, make_policy, policies, simulate
from splitpoint.edge.request import PARAMETERS
from splitpoint.offloading import LatencyModel
from splitpoint.serving.conductor import Conductor, Event, replay
from splitpoint.serving.forecast import Forecast, error_shares

LINE = LatencyModel(0.0005, 0.002)
EDGE = Edge(LINE, max_batch=6)
SYSTEM = System((EDGE,))


def drive(policy, path, system=SYSTEM, until_s=np.inf):
    """An edge with a fake forward pass that takes what the latency curve says, and a fake clock."""
    edge = system.edges[0]
    conductor = Conductor(system, policy, remember=10**6)
    events = [(time, 1, number) for number, time in enumerate(path.arrival_s)]  # at one moment: ends, then arrivals
    heapq.heapify(events)
    joined, left = {}, {}

    def begin(now):
        if not conductor.core.running and (ids := conductor.begin(now)):
            for name in ids:
                joined.setdefault(name, now)
            heapq.heappush(events, (now + float(edge.latency.step_latency_s(len(ids))), 0, -1))

    while events:
        now, kind, number = heapq.heappop(events)
        if kind == 0:
            for departure in conductor.end(now):
                left[departure.id] = now
        else:
            request = Request(number, now, path.device_step_s[number], path.alpha[number])
            conductor.decide([request], now, [path.draw[number]])
        if not events or events[0][0] > now:
            begin(now)
    return conductor, joined, left


SLOW = ("rollout", "hindsight_duals", "adaptive_price")  # to tune, not to serve
PLAIN = [name for name in policies() if "window" not in name and name not in SLOW]
EXPECTED = Poisson(12.0, horizon_s=20.0)
tuned = cache(lambda name: make_policy(name, [EDGE], EXPECTED))


def fresh(name):
    """A policy that has seen nothing yet, tuned once."""
    return copy.deepcopy(tuned(name))


@pytest.mark.parametrize("name", PLAIN)
def test_the_engine_is_the_simulator_event_by_event(name):
    (path,) = draw_paths([EDGE], EXPECTED, seed=3)
    table = simulate([EDGE], [path], fresh(name), close=False)
    conductor, joined, left = drive(fresh(name), path)
    served = table[table.edge >= 0]
    granted = {e.ids[0]: e.steps[0] for e in conductor.log if e.kind == "ask"}
    assert [granted[i] for i in range(len(path))] == table.granted_steps.tolist()
    assert joined == pytest.approx(dict(zip(served.request, served.joined_s)), abs=1e-9)
    assert left == pytest.approx(dict(zip(served.request, served.left_s)), abs=1e-9)
    assert name == "all_local" or len(served) > 20


@pytest.mark.parametrize("name", ["first_come", "state_price", "replanning", "mirror_descent"])
def test_a_log_decides_everything_again(name):
    (path,) = draw_paths([EDGE], Poisson(12.0, horizon_s=10.0), seed=5)
    conductor, *_ = drive(fresh(name), path)
    log = [Event.from_dict(event.to_dict()) for event in conductor.log]
    answers = replay(log, SYSTEM, fresh(name))
    assert len(answers) == len(path)
    assert all(then == now for _, then, now in answers)


def test_a_log_of_another_policy_is_told_apart():
    (path,) = draw_paths([EDGE], Poisson(12.0, horizon_s=10.0), seed=5)
    conductor, *_ = drive(make_policy("first_come", [EDGE]), path)
    answers = replay(conductor.log, SYSTEM, make_policy("all_local", [EDGE]))
    assert any(then != now for _, then, now in answers)


def test_a_log_with_another_batch_is_refused():
    (path,) = draw_paths([EDGE], Poisson(12.0, horizon_s=5.0), seed=5)
    conductor, *_ = drive(make_policy("first_come", [EDGE]), path)
    log = [e if e.kind != "begin" else Event("begin", e.time_s, (*e.ids, "stranger")) for e in conductor.log]
    with pytest.raises(ValueError, match="has members"):
        replay(log, SYSTEM, make_policy("first_come", [EDGE]))


def test_a_window_is_decided_together():
    policy = make_policy("window_plan", [EDGE])
    conductor = Conductor(SYSTEM, policy)
    requests = [Request(i, 0.9, 0.05, 10.0) for i in range(9)]
    answers = conductor.decide(requests, 1.0)
    assert len(answers) == 9 and 0 < sum(steps > 0 for steps, _ in answers) <= 6
    assert list(conductor.core.waiting) == [i for i, (steps, _) in enumerate(answers) if steps]
    assert all(then == now for _, then, now in replay(conductor.log, SYSTEM, make_policy("window_plan", [EDGE])))


def test_one_by_one_is_asked_one_by_one():
    conductor = Conductor(SYSTEM, make_policy("first_come", [EDGE]))
    with pytest.raises(ValueError, match="requests are 2; valid is 1"):
        conductor.decide([Request(0, 0.0, 0.1, 1.0), Request(1, 0.0, 0.1, 1.0)], 0.0)


def test_a_deadline_that_a_grant_would_miss_keeps_a_request_at_home():
    forecast = Forecast(EDGE.step_table_s()[1:])
    home_s = PARAMETERS.num_steps * 0.01
    for deadline, granted in ((None, True), (home_s, False), (home_s * 1e-3, True), (100.0, True)):
        conductor = Conductor(SYSTEM, lambda seen: make_policy("first_come", [EDGE])(seen), forecast)
        for number in range(6):  # the edge is busy for long
            conductor.core.submit(f"old-{number}", 199)
        conductor.policy = lambda seen: type("D", (), dict(edge=0, steps=100))
        ((steps, promise),) = conductor.decide([Request(0, 0.0, 0.01, 1.0)], 0.0, deadlines_s=[deadline])
        assert (steps > 0) == granted == (promise is not None)
        event = conductor.log[-1]
        assert event.steps == (100,) and event.carried == (steps,)


class TestForecast:
    def test_nobody_else_comes(self):
        """Exact: walk the core itself."""
        table = EDGE.step_table_s()
        core = EdgeCore(6)
        for number, steps in enumerate([5, 9, 30, 2, 7, 11, 3, 4]):
            core.submit(number, steps)
        core.next_batch(0.0)
        now, began = 0.001, 0.0
        promise = Forecast(table[1:]).promise(core, 12, now, began)
        core.submit("me", 12)
        end = began + table[len(core.members)]
        while True:
            if any(d.id == "me" for d in core.step_done(end)):
                break
            end += table[len(core.next_batch(end))]
        assert promise.expected_s == pytest.approx(end - now)
        assert promise.longest_s >= promise.expected_s

    @given(st.lists(st.integers(1, 20), max_size=9), st.integers(1, 20), st.floats(0.0, 40.0), st.integers(0, 6))
    @settings(max_examples=60)
    def test_never_below_alone_and_never_above_full(self, others, steps, rate, seen):
        table = EDGE.step_table_s()[1:]
        forecast = Forecast(table)
        for number in range(seen):
            forecast.granted(number / max(rate, 1.0), 10)
        core = EdgeCore(6)
        for number, left in enumerate(others):
            core.submit(number, left)
        promise = forecast.promise(core, steps, seen / max(rate, 1.0), None)
        assert steps * table[0] - 1e-12 <= promise.expected_s <= promise.longest_s + 1e-12

    def test_steps_that_take_longer_than_the_table_says_make_it_longer_by_as_much(self):
        table, core = EDGE.step_table_s()[1:], EdgeCore(6)
        core.submit("other", 30)
        forecast = Forecast(table)
        before = forecast.promise(core, 40, 0.0, None)
        for _ in range(25):
            forecast.stepped(2, 1.2 * table[1])
        after = forecast.promise(core, 40, 0.0, None)
        assert after.expected_s == pytest.approx(1.2 * before.expected_s)
        assert after.longest_s == pytest.approx(1.2 * before.longest_s)
        for _ in range(25):
            forecast.stepped(1, 0.5 * table[0])
        fast = forecast.promise(core, 40, 0.0, None)  # a promise is not shortened by what may not last
        assert (fast.expected_s, fast.longest_s) == pytest.approx((0.5 * before.expected_s, before.longest_s))

    def test_a_conductor_tells_its_forecast_how_long_steps_take(self):
        forecast = Forecast(EDGE.step_table_s()[1:])
        conductor = Conductor(SYSTEM, make_policy("first_come", [EDGE]), forecast)
        conductor.core.submit("a", 40)
        for number in range(30):
            conductor.begin(float(number))
            conductor.end(number + 1.5 * EDGE.step_table_s()[1])
        assert forecast.pace() == pytest.approx((1.5, 1.5))

    def test_newcomers_make_it_longer(self):
        quiet, busy = Forecast(EDGE.step_table_s()[1:]), Forecast(EDGE.step_table_s()[1:])
        for number in range(40):
            busy.granted(number * 0.05, 50)
        core = EdgeCore(6)
        assert busy.promise(core, 50, 2.0, None).expected_s > 1.1 * quiet.promise(core, 50, 2.0, None).expected_s
        assert busy.newcomers(2.0) == (pytest.approx(40 / 3.0), 50.0)
        assert busy.newcomers(100.0) == (0.0, 0.0)

    def test_bad_tables_are_refused(self):
        for table in ([], [0.0], [1.0, -1.0], [[1.0]], ["x"], [float("nan")]):
            with pytest.raises(ValueError, match="table_s"):
                Forecast(table)
        with pytest.raises(ValueError, match="steps"):
            Forecast([1.0]).promise(EdgeCore(1), 0, 0.0, None)

    def test_errors_are_shares_of_what_was_measured(self):
        assert error_shares([1.0, 3.0], [2.0, 2.0]) == pytest.approx([0.5, 0.5])
        with pytest.raises(ValueError, match="valid is one each"):
            error_shares([1.0], [1.0, 2.0])
