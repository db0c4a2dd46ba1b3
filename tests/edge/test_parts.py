"""The core by itself; arrivals, free compute and links by what is known of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitpoint.edge import (
    FITTED_TRACES,
    CapacityPath,
    ConstantCapacity,
    DutyCycleCapacity,
    Edge,
    EdgeCore,
    FittedTrace,
    HiddenRegimes,
    Link,
    MarkovCapacity,
    Poisson,
    Ramp,
    Recorded,
    RecordedCapacity,
    Request,
    batch_over_time,
    draw_paths,
    fitted_trace,
    make_policy,
    observe,
    read_trace,
    simulate,
    steady_state,
)
from splitpoint.edge.observation import System
from splitpoint.offloading import published_latency

EDGE = Edge(published_latency()[0].shared_by(16))


def test_join_step_leave():
    core = EdgeCore(2)
    assert core.next_batch(0.0) == () and not core.running
    for name, steps in (("a", 1), ("b", 3), ("c", 1)):
        core.submit(name, steps)
    assert core.next_batch(1.0) == ("a", "b")
    (gone,) = core.step_done(2.0)
    assert (gone.id, gone.joined_s, gone.left_s, gone.steps) == ("a", 1.0, 2.0, 1)
    assert core.next_batch(2.0) == ("b", "c")
    assert [d.id for d in core.step_done(3.0)] == ["c"]
    assert core.next_batch(3.0) == ("b",) and [d.steps for d in core.step_done(4.0)] == [3]
    assert core.next_batch(4.0) == ()


def test_cancel_and_failed_and_close():
    core = EdgeCore(2)
    for name in "abcd":
        core.submit(name, 5)
    core.next_batch(0.0)
    assert core.cancel("d", 0.5).steps == 0 and core.cancel("x", 0.5) is None
    assert core.cancel("a", 0.5) is None  # in the step under way
    assert [(d.id, d.steps) for d in core.step_done(1.0)] == [("a", 1)]
    assert core.next_batch(1.0) == ("b", "c")
    assert [(d.id, d.steps) for d in core.step_done(2.0, failed=("c",))] == [("c", 0)]
    assert core.cancel("b", 2.0).steps == 2
    core.submit("e", 2)
    core.next_batch(3.0)
    core.submit("f", 2)
    assert [(d.id, d.joined_s) for d in core.close(4.0)] == [("e", 3.0), ("f", None)]
    assert not core.running and core.next_batch(5.0) == ()


def test_core_refuses():
    core = EdgeCore()
    core.submit("a", 1)
    with pytest.raises(ValueError, match="on the edge already"):
        core.submit("a", 1)
    with pytest.raises(ValueError, match="steps=0"):
        core.submit("b", 0)
    with pytest.raises(ValueError, match="call next_batch first"):
        core.step_done(0.0)
    core.next_batch(0.0)
    with pytest.raises(ValueError, match="call step_done first"):
        core.next_batch(0.0)
    with pytest.raises(ValueError, match="max_batch=0"):
        EdgeCore(0)
    with pytest.raises(ValueError, match="valid is 1 each"):
        observe(Request(0, 0.0, 0.1, 1.0), [core], [], np.zeros(3), System((EDGE,)))


@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.05, 1)), min_size=1, max_size=8), st.floats(0, 50))
def test_a_clock_and_its_inverse(pieces, moment):
    start = np.append(0.0, np.cumsum([length for length, _ in pieces]))[:-1]
    path = CapacityPath(start, np.array([share for _, share in pieces]))
    assert path.seconds(path.work(moment)) == pytest.approx(moment, abs=1e-6)
    grid = np.linspace(0, moment, 2001)
    middle = path.at((grid[1:] + grid[:-1]) / 2)
    assert path.work(moment) == pytest.approx(float(middle.sum() * (grid[1] - grid[0])), abs=10 * moment / 2000 + 1e-9)
    length, share = path.pieces(moment + 1)
    assert length.sum() == pytest.approx(moment + 1) and length @ share == pytest.approx(path.work(moment + 1))


def test_markov_compute_stays_as_long_as_it_says():
    path = MarkovCapacity((1.0, 0.5, 0.25), 5.0).draw(np.random.default_rng(0), 20_000.0)
    length, share = path.pieces(20_000.0)
    assert np.all(np.diff(share) != 0) and length.mean() == pytest.approx(5, rel=0.06)
    for level in (1.0, 0.5, 0.25):
        assert length[share == level].sum() / 20_000 == pytest.approx(1 / 3, abs=0.05)
    only = MarkovCapacity((1.0, 0.5), 1.0, ((0.0, 1.0), (1.0, 0.0))).draw(np.random.default_rng(0), 10.0)
    assert set(only.share) == {1.0, 0.5}


def test_duty_cycle_and_recorded_compute():
    path = DutyCycleCapacity().draw(np.random.default_rng(0), 60 * 20_000.0)
    moves = path.share[1:][path.share[:-1] == 1.0]
    assert np.mean(moves == 1.0) == pytest.approx(0.858, abs=0.01)
    assert RecordedCapacity((0.0, 2.0), (1.0, 0.5)).draw(np.random.default_rng(0), 9.0).work(4.0) == 3.0


@pytest.mark.parametrize(
    "arrivals, expected",
    [
        (Poisson(5.0, 400.0), 2000),
        (Ramp(2.0, 8.0, 400.0), 2000),
        (Ramp(2.0, 8.0, 400.0, jump_s=200.0), 2000),
        (FittedTrace(5.0, 1.2, 0.2, 400.0), 2000),
        (HiddenRegimes((4.0, 6.0), 5.0, 400.0), 2000),
    ],
)
def test_as_many_come_as_should(arrivals, expected):
    counts = [len(arrivals.times(np.random.default_rng(seed))) for seed in range(12)]
    assert np.mean(counts) == pytest.approx(expected, rel=0.05)
    times = arrivals.times(np.random.default_rng(0))
    assert np.all(np.diff(times) >= 0) and times.min() >= 0 and times.max() < 400


def test_a_ramp_rises_and_regimes_cluster():
    times = Ramp(0.0, 10.0, 400.0).times(np.random.default_rng(0))
    assert np.mean(times > 200) == pytest.approx(0.75, abs=0.03)
    counts = {}
    for arrivals in (Poisson(5.0, 4000.0), HiddenRegimes((1.0, 9.0), 20.0, 4000.0)):
        bins = np.histogram(arrivals.times(np.random.default_rng(0)), np.arange(0, 4001, 10))[0]
        counts[type(arrivals).__name__] = bins.var() / bins.mean()
    assert counts["Poisson"] < 1.5 < 10 < counts["HiddenRegimes"]


@pytest.mark.parametrize("name, gap_cv, spread", [("azure_conversation", 1.09, 26), ("azure_code", 13.0, 114)])
def test_fitted_traces_are_as_bursty_as_the_traces(name, gap_cv, spread):
    cvs, ratios = [], []
    for seed in range(20):
        times = fitted_trace(name, 58 * 60.0).times(np.random.default_rng(seed))
        gaps = np.diff(times)
        counts = np.histogram(times, np.arange(0, 58 * 60 + 1, 60))[0]
        cvs.append(gaps.std() / gaps.mean())
        ratios.append(counts.var() / counts.mean())
    assert np.median(cvs) == pytest.approx(gap_cv, rel=0.25)
    assert np.median(ratios) == pytest.approx(spread, rel=0.4)
    assert FITTED_TRACES[name]["rate_hz"] > 0


def test_traces_are_read_from_a_users_own_file(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,Tokens\n2023-11-16 18:15:46.6805900,1\n2023-11-16 18:15:50.9951690,2\n")
    assert read_trace(file).moments_s == pytest.approx((0.0, 4.314579))
    file.write_text("s\n3\n1.5\n9\n")
    trace = read_trace(file, "s", horizon_s=5.0)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as a spreadsheet saves it
    assert read_trace(file, "s", horizon_s=5.0) == trace
    np.testing.assert_allclose(trace.times(np.random.default_rng(0)), [0, 1.5])
    with pytest.raises(ValueError, match="column='TIMESTAMP'"):
        read_trace(file)


def test_a_link_adds_distance():
    assert Link().transfer_s() == pytest.approx(EDGE.transfer_s)
    assert Link(1e9, 0.05).transfer_s() == pytest.approx(0.1 + 4_400_216 / 1e9)


def test_members_over_time_end_at_nobody():
    table = simulate([EDGE], Poisson(8.0, 10.0), make_policy("first_come", [EDGE]), seed=1)
    inside = batch_over_time(table)
    assert inside.batch.iloc[-1] == inside.waiting.iloc[-1] == 0 and inside.batch.max() <= 18
    assert inside[["batch", "waiting"]].to_numpy().min() >= 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Poisson(-1.0), "rate_hz=-1"),
        (lambda: Poisson(1.0, 0.0), "horizon_s=0"),
        (lambda: HiddenRegimes((-1.0,)), "rates_hz holds -1"),
        (lambda: Ramp(1.0, np.nan), "last_hz=nan"),
        (lambda: FittedTrace(1.0, 0.0), "gap_cv=0"),
        (lambda: fitted_trace("x"), "there are: azure"),
        (lambda: ConstantCapacity(0.0), "share=0"),
        (lambda: MarkovCapacity(odds=((1.0,),)), "one row of probabilities"),
        (lambda: CapacityPath(np.array([1.0]), np.array([1.0])), "from 0 s on"),
        (lambda: CapacityPath(np.array([0.0, 0.0]), np.array([1.0, 1.0])), "start_s must rise"),
        (lambda: Edge(EDGE.latency, max_batch=0), "max_batch=0"),
        (lambda: Request(0, 0.0, 0.0, 1.0), "device_step_s=0"),
        (lambda: draw_paths([], Poisson(1.0)), "edges is empty"),
        (lambda: draw_paths([EDGE], Poisson(1.0), replications=0), "replications=0"),
        (lambda: System(()), "edges is empty"),
        (lambda: simulate([EDGE], [], lambda o: None), "arrivals is empty"),
        (lambda: steady_state(EDGE, 1e9), "the queue has no end"),
        (lambda: Link(0.0), "rate_bps=0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_empty_path_plays():
    table = simulate([EDGE], Recorded(()), make_policy("first_come", [EDGE]))
    assert len(table) == 0 and table.gain_s.sum() == 0
