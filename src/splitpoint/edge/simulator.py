"""Edges in continuous time, event by event, many replications side by side.

A row is one edge of one replication. It keeps ``counter``, the steps that it has done, and for each member the counter
at which it leaves: between an arrival and an exit nothing else happens, so a row jumps over all steps between them at
once. Time inside is free machine-seconds (``capacity``), on which a step of b members always takes the same.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from splitpoint.checks import a_sequence, instance_of, whole_number
from splitpoint.edge.arrivals import Arrivals, Path, draw_paths
from splitpoint.edge.observation import ArrivalRates, Observation, System
from splitpoint.edge.request import HOME, PARAMETERS, Decision, Edge, grant_value_s, some_edges
from splitpoint.offloading import SystemParameters

NEVER = np.iinfo(np.int64).max


class Rows:
    """The state of many edges, each on its own clock of free machine-seconds.

    Args:
        table_s: seconds of a step at batch 0 … widest, shape (rows, widest + 1).
        limits: most members of a step, shape (rows,).
        tickets: requests that may ever be submitted, numbered from 0.
    """

    def __init__(self, table_s: NDArray[np.float64], limits: NDArray[np.int64], tickets: int):
        rows, width = len(limits), int(limits.max())
        self.table_s, self.limits = table_s, limits
        self.exits = np.full((rows, width), NEVER)  # counter at which the member of a slot leaves
        self.who = np.full((rows, width), -1)
        self.next_exit = np.full(rows, NEVER)
        self.exit_sum = np.zeros(rows, dtype=np.int64)
        self.counter = np.zeros(rows, dtype=np.int64)
        self.boundary = np.zeros(rows)  # when the step under way began
        self.size = np.zeros(rows, dtype=np.int64)
        self.queue = np.full((rows, 16), -1)  # tickets in order of arrival, those between head and tail wait
        self.head = np.zeros(rows, dtype=np.int64)
        self.tail = np.zeros(rows, dtype=np.int64)
        self.queued_steps = np.zeros(rows, dtype=np.int64)
        self.steps = np.zeros(tickets, dtype=np.int64)
        self.joined = np.full(tickets, np.nan)
        self.left = np.full(tickets, np.nan)
        self.done = np.zeros(tickets, dtype=np.int64)

    @property
    def waiting(self) -> NDArray[np.int64]:
        """Who waits for a boundary or for room, shape (rows,)."""
        return self.tail - self.head

    def advance(self, rows: NDArray[np.int64], until: NDArray[np.float64]) -> None:
        """Play rows up to moments of their clocks, shape (r,) each, from exit to exit and from joining to joining."""
        busy = self.size[rows] > 0
        rows, until = rows[busy], until[busy]
        while len(rows):
            step = self.table_s[rows, self.size[rows]]
            letting_in = (self.tail[rows] > self.head[rows]) & (self.size[rows] < self.limits[rows])
            steps = np.where(letting_in, 1, self.next_exit[rows] - self.counter[rows])
            begin = self.boundary[rows]
            event = begin + steps * step
            there = event <= until
            part = ~there
            if part.any():  # whole steps before the moment; the one under way then goes on
                short = np.minimum(((until[part] - begin[part]) / step[part]).astype(np.int64), steps[part] - 1)
                self.boundary[rows[part]] = begin[part] + short * step[part]
                self.counter[rows[part]] += short
                rows, until, steps, event = rows[there], until[there], steps[there], event[there]
            self.boundary[rows] = event
            self.counter[rows] += steps
            self._let_out(rows[self.counter[rows] == self.next_exit[rows]])
            self._let_in(rows)
            busy = self.size[rows] > 0
            rows, until = rows[busy], until[busy]

    def submit(
        self, rows: NDArray[np.int64], tickets: NDArray[np.int64], steps: NDArray[np.int64], now: NDArray[np.float64]
    ) -> None:
        """Queue one request for each of the rows, shape (r,) each; who meets a boundary joins at once."""
        if len(rows) == 0:
            return
        if self.tail[rows].max() == self.queue.shape[1]:
            self.queue = np.concatenate([self.queue, np.full_like(self.queue, -1)], axis=1)
        self.queue[rows, self.tail[rows]] = tickets
        self.tail[rows] += 1
        self.steps[tickets] = steps
        self.queued_steps[rows] += steps
        idle = self.size[rows] == 0
        self.boundary[rows[idle]] = now[idle]
        self._let_in(rows[self.boundary[rows] == now])

    def close(self, rows: NDArray[np.int64], now: NDArray[np.float64]) -> None:
        """Everyone leaves with the steps that are done; a step under way is lost."""
        self.advance(rows, now)
        at, slot = np.nonzero(self.exits[rows] != NEVER)
        inside = self.who[rows[at], slot]
        self.left[inside] = now[at]
        self.done[inside] = self.steps[inside] - (self.exits[rows[at], slot] - self.counter[rows[at]])
        for row, moment in zip(rows[self.waiting[rows] > 0], now[self.waiting[rows] > 0]):
            self.left[self.queue[row, self.head[row] : self.tail[row]]] = moment
        self.exits[rows], self.size[rows], self.next_exit[rows], self.exit_sum[rows] = NEVER, 0, NEVER, 0
        self.head[rows], self.queued_steps[rows] = self.tail[rows], 0

    def work_left(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Steps still to do of members and waiting, shape (r,)."""
        return self.exit_sum[rows] - self.size[rows] * self.counter[rows] + self.queued_steps[rows]

    def remaining(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same one by one, shape (r, width + most waiting); 0 where nobody is, at most 2 width are listed."""
        exits = self.exits[rows]
        members = np.where(exits == NEVER, 0, exits - self.counter[rows][:, None])
        waiting, width = self.waiting[rows], members.shape[1]
        columns = [members]
        for place in range(min(int(waiting.max(initial=0)), width)):
            at = np.minimum(self.head[rows] + place, self.queue.shape[1] - 1)
            columns.append(np.where(place < waiting, self.steps[self.queue[rows, at]], 0)[:, None])
        return np.concatenate(columns, axis=1)

    def _let_in(self, rows: NDArray[np.int64]) -> None:
        rows = rows[(self.head[rows] < self.tail[rows]) & (self.size[rows] < self.limits[rows])]
        while len(rows):
            ticket = self.queue[rows, self.head[rows]]
            slot = np.argmax(self.exits[rows] == NEVER, axis=1)
            exits = self.counter[rows] + self.steps[ticket]
            self.exits[rows, slot], self.who[rows, slot] = exits, ticket
            self.next_exit[rows] = np.minimum(self.next_exit[rows], exits)
            self.exit_sum[rows] += exits
            self.joined[ticket] = self.boundary[rows]
            self.size[rows] += 1
            self.head[rows] += 1
            self.queued_steps[rows] -= self.steps[ticket]
            rows = rows[(self.head[rows] < self.tail[rows]) & (self.size[rows] < self.limits[rows])]

    def _let_out(self, rows: NDArray[np.int64]) -> None:
        if len(rows) == 0:
            return
        exits, now = self.exits[rows], self.next_exit[rows]
        leaving = exits == now[:, None]
        at, slot = np.nonzero(leaving)
        out = self.who[rows[at], slot]
        self.left[out] = self.boundary[rows[at]]
        self.done[out] = self.steps[out]
        exits[leaving] = NEVER
        count = leaving.sum(axis=1)
        self.exits[rows] = exits
        self.next_exit[rows] = exits.min(axis=1)
        self.size[rows] -= count
        self.exit_sum[rows] -= now * count


class Simulation:
    """Paths played side by side: look at each arrival, decide, go on.

    Args:
        system: the edges.
        paths: at least one, all of these edges.

    Every edge has a clock of its own, on which its steps always take the same; see ``clock``.
    """

    def __init__(self, system: System, paths: Sequence[Path]):
        instance_of("system", system, System)
        for path in a_sequence("paths", paths):
            instance_of("paths", path, Path)
            if len(path.capacity) != len(system.edges):
                raise ValueError(
                    f"paths know {len(path.capacity)} edges; valid is free compute for each of {len(system.edges)}"
                )
        self.system, self.paths = system, list(paths)
        self.counts = np.array([len(path) for path in paths])
        self.num_edges, self.longest = len(system.edges), int(self.counts.max(initial=0))
        shape = (len(paths), self.longest)
        self.time_s, self.device_step_s, self.alpha, self.draw = (np.full(shape, v) for v in (np.inf, 1.0, 0.0, 0.0))
        for row, path in enumerate(paths):
            here = (row, slice(len(path)))
            self.time_s[here], self.device_step_s[here] = path.arrival_s, path.device_step_s
            self.alpha[here], self.draw[here] = path.alpha, path.draw
        self.rows = Rows(
            np.tile(system.table_s, (len(paths), 1)), np.tile(system.limits, len(paths)), int(np.prod(shape))
        )
        self.rates = ArrivalRates((len(paths),))
        self.edge = np.full(shape, HOME)
        self.granted = np.zeros(shape, dtype=np.int64)
        self.decided_s = self.time_s.copy()
        self._clocks: tuple[NDArray, NDArray] | None = None

    def work(self, runs: NDArray[np.int64], time_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Moments on the clocks of all edges, shape (runs,) -> (runs, E)."""
        return np.array([[c.work(t) for c in self.paths[run].capacity] for run, t in zip(runs, time_s)])

    def _all_clocks(self) -> tuple[NDArray, NDArray]:
        """All arrivals on all clocks, and free compute at them, shape (longest, runs, E) each; made once."""
        if self._clocks is None:
            clock = np.zeros((self.longest, len(self.paths), self.num_edges))
            free = np.ones_like(clock)
            for row, path in enumerate(self.paths):
                for column, capacity in enumerate(path.capacity):
                    clock[: len(path), row, column] = capacity.work(path.arrival_s)
                    free[: len(path), row, column] = capacity.at(path.arrival_s)
            self._clocks = clock, free
        return self._clocks

    def clock(self, number: int, runs: NDArray[np.int64]) -> NDArray[np.float64]:
        """Arrival ``number`` of runs on the clocks of all edges, shape (r,) -> (r, E)."""
        return self._all_clocks()[0][number, runs]

    def arrive(self, number: int) -> tuple[NDArray[np.int64], Observation]:
        """Play up to arrival ``number`` of every run that has one.

        Returns:
            The runs, shape (r,), and what they see.
        """
        runs = np.flatnonzero(self.counts > number)
        clock, free = self._all_clocks()
        rows = self._rows_of(runs)
        self.rows.advance(rows.ravel(), clock[number, runs].ravel())
        return runs, self.look(runs, np.full(len(runs), number), free[number, runs], self.time_s[runs, number])

    def look(self, runs, numbers, free, time_s) -> Observation:
        """What requests see of rows as they stand; ``numbers`` of the requests, all of one length."""
        rows = self._rows_of(runs)
        shape = rows.shape
        flat = rows.ravel()
        return Observation(
            time_s=time_s,
            device_step_s=self.device_step_s[runs, numbers],
            alpha=self.alpha[runs, numbers],
            draw=self.draw[runs, numbers],
            free=free,
            batch=self.rows.size[flat].reshape(shape),
            waiting=self.rows.waiting[flat].reshape(shape),
            work_left=self.rows.work_left(flat).reshape(shape),
            remaining=self.rows.remaining(flat).reshape(*shape, -1),
            rates_hz=self.rates.seen(time_s, runs),
            run=runs,
            system=self.system,
        )

    def grant(self, runs: NDArray, numbers: NDArray, edge: NDArray, steps: NDArray, now: NDArray) -> None:
        """Carry out decisions for requests of runs, shape (r,) each; ``now`` on all clocks, shape (r, E)."""
        edge, steps = _decided("edge", edge, runs.shape, HOME), _decided("steps", steps, runs.shape, 0)
        sent = (edge >= 0) & (steps > 0)
        self._possible(edge[sent], steps[sent])
        runs, numbers, edge, steps, now = runs[sent], numbers[sent], edge[sent], steps[sent], now[sent]
        self.edge[runs, numbers], self.granted[runs, numbers] = edge, steps
        tickets = runs * self.longest + numbers
        self.rows.submit(runs * self.num_edges + edge, tickets, steps, now[np.arange(len(runs)), edge])

    def _possible(self, edge: NDArray, steps: NDArray) -> None:
        """Refuse a grant on an edge that is not there, or of more steps than one may have."""
        if np.any(edge >= self.num_edges) or np.any(steps > self.system.most_steps):
            raise ValueError(
                f"edge={edge.max()} or steps={steps.max()} is outside "
                f"[0, {self.num_edges - 1}] or [0, {self.system.most_steps}]"
            )

    def finish(self, close: bool) -> None:
        """Play to the end: the edge closes at the horizon, or goes on until all are done."""
        runs = np.arange(len(self.paths))
        rows = self._rows_of(runs).ravel()
        if close:
            horizon = np.array([path.horizon_s for path in self.paths])
            self.rows.close(rows, self.work(runs, horizon).ravel())
        else:
            self.rows.advance(rows, np.full(len(rows), np.inf))

    def _rows_of(self, runs: NDArray) -> NDArray[np.int64]:
        return runs[:, None] * self.num_edges + np.arange(self.num_edges)

    def play(self, policy: Any, close: bool = True) -> None:
        """Play all paths to the end with a policy."""
        is_a_policy("policy", policy)
        instance_of("close", close, bool)
        if hasattr(policy, "reset"):
            policy.reset(len(self.paths))
        if getattr(policy, "window_s", None):
            self._play_windows(policy)
        elif getattr(policy, "blind", False):
            self._play_blind(policy)
        else:
            many = getattr(policy, "many", False)
            for number in range(self.longest):
                runs, observation = self.arrive(number)
                decision = _answer(policy, observation) if many else _one_by_one(policy, observation)
                edge, steps = np.asarray(decision.edge), np.asarray(decision.steps)
                self.grant(runs, np.full(len(runs), number), edge, steps, self.clock(number, runs))
        self.finish(close)

    def _play_windows(self, policy) -> None:
        """Decide at the end of every window for all who came in it."""
        horizon = max(path.horizon_s for path in self.paths)
        for end in np.arange(1, int(np.ceil(horizon / policy.window_s)) + 1) * policy.window_s:
            for run, path in enumerate(self.paths):
                first, last = np.searchsorted(path.arrival_s, [end - policy.window_s, end])
                if first == last or end > path.horizon_s:
                    continue
                runs, numbers = np.full(last - first, run), np.arange(first, last)
                clock = np.repeat(self.work(runs[:1], np.array([end])), len(runs), axis=0)
                self.rows.advance(self._rows_of(runs[:1]).ravel(), clock[0])
                free = np.array([[capacity.at(end) for capacity in path.capacity]] * len(runs))
                observation = self.look(runs, numbers, free, np.full(len(runs), end))
                decision = _answer(policy, observation)
                self.decided_s[run, first:last] = end if policy.charge_waiting else path.arrival_s[first:last]
                edge, steps = np.asarray(decision.edge), np.asarray(decision.steps)
                for i in range(len(runs)):
                    self.grant(runs[[i]], numbers[[i]], edge[[i]], steps[[i]], clock[[i]])

    def _play_blind(self, policy) -> None:
        """A policy that does not look: every edge has its own stream of requests, known beforehand."""
        real = np.isfinite(self.time_s)
        decision = policy.decide(self.time_s[real], self.device_step_s[real], self.alpha[real], self.draw[real])
        run, number = np.nonzero(real)
        edge, steps = _decided("edge", decision.edge, run.shape, HOME), _decided("steps", decision.steps, run.shape, 0)
        sent = (edge >= 0) & (steps > 0)
        run, number, edge, steps = run[sent], number[sent], edge[sent], steps[sent]
        self._possible(edge, steps)
        self.edge[run, number], self.granted[run, number] = edge, steps
        row = run * self.num_edges + edge
        order = np.argsort(row, kind="stable")
        row, run, number, edge, steps = (values[order] for values in (row, run, number, edge, steps))
        starts = np.searchsorted(row, np.arange(len(self.rows.size) + 1))
        clock = np.zeros(len(row))
        for r, (first, last) in enumerate(pairwise(starts)):
            path = self.paths[r // self.num_edges]
            clock[first:last] = path.capacity[r % self.num_edges].work(path.arrival_s[number[first:last]])
        lengths = np.diff(starts)
        by_length = np.argsort(-lengths, kind="stable")
        tickets = run * self.longest + number
        for place in range(int(lengths.max(initial=0))):
            rows = by_length[: np.searchsorted(-lengths[by_length], -place, side="left")]
            at = starts[rows] + place
            self.rows.advance(rows, clock[at])
            self.rows.submit(rows, tickets[at], steps[at], clock[at])

    def table(self) -> pd.DataFrame:
        """One row a request; see ``simulate``."""
        system, shape = self.system, self.time_s.shape
        tickets = slice(self.time_s.size)  # rollouts have more, for those who were inside before
        joined, left, done = (
            values[tickets].reshape(shape) for values in (self.rows.joined, self.rows.left, self.rows.done)
        )
        run, number = np.nonzero(np.isfinite(self.time_s))
        at = (run, number)
        edge, joined, left, done = self.edge[at], joined[at].copy(), left[at].copy(), done[at]
        self._to_seconds(run, edge, joined, left)
        arrival, device, alpha = self.time_s[at], self.device_step_s[at], self.alpha[at]
        steps, decided = np.where(edge >= 0, done, 0), self.decided_s[at]
        transfer = np.where(steps > 0, system.transfer_s[edge], 0.0)
        home_from = np.where(edge >= 0, left + transfer, decided)
        done_s = home_from + (system.parameters.num_steps - steps) * device
        accuracy = system.parameters.accuracy.pai(system.parameters.num_steps - steps)
        paid = np.where(edge >= 0, left, decided) - arrival
        return pd.DataFrame(
            dict(
                replication=run,
                request=number,
                arrival_s=arrival,
                device_step_s=device,
                alpha=alpha,
                edge=edge,
                granted_steps=self.granted[at],
                steps=steps,
                joined_s=joined,
                left_s=left,
                done_s=done_s,
                accuracy=accuracy,
                latency_s=done_s - arrival,
                utility_s=alpha * accuracy - (done_s - arrival),
                gain_s=grant_value_s(alpha, device, steps, transfer, system.parameters) - paid,
            )
        )

    def _to_seconds(self, run, edge, joined, left) -> None:
        """Clock times into seconds in place, edge by edge."""
        row = np.where(edge >= 0, run * self.num_edges + edge, -1)
        order = np.argsort(row, kind="stable")
        starts = np.searchsorted(row[order], np.arange(len(self.paths) * self.num_edges + 1))
        for r in np.flatnonzero(np.diff(starts)):
            here = order[starts[r] : starts[r + 1]]
            capacity = self.paths[r // self.num_edges].capacity[r % self.num_edges]
            joined[here], left[here] = capacity.seconds(joined[here]), capacity.seconds(left[here])


def simulate(
    edges: Sequence[Edge],
    arrivals: Arrivals | Sequence[Path],
    policy: Any,
    seed: int = 0,
    replications: int = 1,
    close: bool = True,
    parameters: SystemParameters = PARAMETERS,
) -> pd.DataFrame:
    """Requests over time on edges that are answered by a policy.

    Args:
        edges: at least one.
        arrivals: where requests come from, or paths from ``draw_paths`` to be played again.
        policy: ``(Observation) -> Decision``; with ``many=True`` it takes all replications at once, with ``blind=True``
            it does not look at the edges.
        seed: of everything random; policies meet the same path under the same seed.
        replications: independent runs, side by side.
        close: the edge closes at the horizon and everyone leaves with the steps done; otherwise it goes on until all
            are done.
        parameters: SystemParameters.

    Returns:
        One row a request: ``replication, request, arrival_s, device_step_s, alpha, edge`` (-1 at home),
        ``granted_steps, steps`` (done), ``joined_s, left_s`` (NaN at home), ``done_s, accuracy, latency_s, utility_s``
        and ``gain_s``, utility above that of all N steps at home from the arrival on.

    Raises:
        ValueError: for no edges, a number outside its range, or a decision that is not possible.
    """
    system = System(some_edges(edges), parameters)
    is_a_policy("policy", policy)
    instance_of("close", close, bool)
    given = isinstance(arrivals, (list, tuple))
    if not given:
        instance_of("arrivals", arrivals, Arrivals)
    for path in a_sequence("arrivals", arrivals) if given else ():
        instance_of("arrivals", path, Path)
    paths = arrivals if given else draw_paths(edges, arrivals, seed, replications)
    simulation = Simulation(system, paths)
    simulation.play(policy, close)
    return simulation.table()


def _one_by_one(policy, observation):
    decisions = [_answer(policy, observation[row]) for row in range(len(observation.time_s))]
    return Decision(np.array([d.edge for d in decisions]), np.array([d.steps for d in decisions]))


def is_a_policy(name: str, policy: Any) -> None:
    """Refuse what answers nobody: it cannot be called, and does not decide without looking either."""
    if not callable(policy) and not (getattr(policy, "blind", False) and hasattr(policy, "decide")):
        raise ValueError(f"{name}={policy!r} answers nobody; valid is a function from Observation to Decision")


def _answer(policy, observation) -> Decision:
    return a_decision(policy(observation))


def a_decision(decision: Any) -> Decision:
    """What a policy has answered; refuses what is no decision."""
    if not hasattr(decision, "edge") or not hasattr(decision, "steps"):
        raise ValueError(f"policy answers {decision!r}; valid is a Decision")
    return decision


def _decided(name: str, values: Any, shape: tuple[int, ...], minimum: int) -> NDArray[np.int64]:
    """What a policy has decided, one number a request; refuses what is no whole number from ``minimum`` up."""
    array = np.asarray(values)
    whole = array.dtype.kind in "iu" or (array.dtype.kind == "f" and bool(np.all(array == np.floor(array))))
    if not whole or array.shape not in ((), shape) or np.any(array < minimum):
        raise ValueError(f"{name}={values!r} of a decision; valid are whole numbers from {minimum} up, one a request")
    return np.broadcast_to(array.astype(np.int64, copy=False), shape)


def batch_over_time(table: pd.DataFrame, edge: int = 0, replication: int = 0) -> pd.DataFrame:
    """Members and waiting of an edge after each of its events: ``time_s, batch, waiting``.

    Raises:
        ValueError: for a table that is not of ``simulate``, or a negative number.
    """
    instance_of("table", table, pd.DataFrame)
    if missing := {"edge", "replication", "arrival_s", "joined_s", "left_s"} - set(table):
        raise ValueError(f"table lacks {', '.join(sorted(missing))}; valid is one of simulate")
    whole_number("edge", edge, 0)
    whole_number("replication", replication, 0)
    here = table[(table.edge == edge) & (table.replication == replication)]
    events = [
        pd.DataFrame(dict(time_s=here.arrival_s, batch=0, waiting=1)),
        pd.DataFrame(dict(time_s=here.joined_s, batch=1, waiting=-1)).dropna(),
        pd.DataFrame(dict(time_s=here.left_s[here.joined_s.notna()], batch=-1, waiting=0)),
        pd.DataFrame(dict(time_s=here.left_s[here.joined_s.isna()], batch=0, waiting=-1)),
    ]
    changes = pd.concat(events).sort_values("time_s", kind="stable").reset_index(drop=True)
    changes[["batch", "waiting"]] = changes[["batch", "waiting"]].cumsum()
    return changes
