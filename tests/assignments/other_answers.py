"""Answers that are right in another way than the source solutions, as students write them: they must get full marks."""

OTHER_ANSWERS = {
    "ps1": {
        "ps1_time_step": """
def time_step(step, batch_size, repeats, warmup, clock=time.perf_counter):
    stamps = []
    for number in range(warmup + repeats):
        before = clock()
        step(batch_size)
        stamps.append(clock() - before)
    return stamps[warmup:]
""",
        "ps1_order": """
def measuring_order(batch_sizes, rounds, rng):
    table = np.tile(np.asarray(batch_sizes), (rounds, 1))
    return rng.permuted(table, axis=1)
""",
        "ps1_fit": """
def fit_line(batch, seconds):
    k, h = np.polyfit(batch, seconds, 1)
    return k, h
""",
        "ps1_intervals": """
def intervals(batch, seconds, confidence=0.95):
    line = stats.linregress(batch, seconds)
    t = stats.t(len(batch) - 2).ppf(0.5 + confidence / 2)
    return np.array([[line.slope - t * line.stderr, line.slope + t * line.stderr],
                     [line.intercept - t * line.intercept_stderr, line.intercept + t * line.intercept_stderr]])
""",
        "ps1_fails": """
def line_fails_at(batch, seconds, fit_up_to, tolerance):
    near = [(b, s) for b, s in zip(batch, seconds) if b <= fit_up_to]
    k, h = np.polyfit(*zip(*near), 1)
    for size in sorted(set(int(b) for b in batch)):
        if size > fit_up_to:
            middle = np.median([s for b, s in zip(batch, seconds) if b == size])
            if abs(k * size + h - middle) / middle > tolerance:
                return size
""",
    },
    "ps2": {
        "ps2_objective": """
def objective(n, alpha, saving_s, steepness, midpoint):
    from scipy.special import expit
    return expit(steepness * (n - midpoint)) * alpha - n * saving_s
""",
        "ps2_curvature": """
def second_derivative(n, alpha, steepness, midpoint):
    e = np.exp(-steepness * (n - midpoint))
    return alpha * steepness**2 * e * (e - 1) / (1 + e)**3


def is_concave(low, high, steepness, midpoint):
    return np.max(second_derivative(np.linspace(low, high, 2001), 1.0, steepness, midpoint)) <= 0
""",
        "ps2_best_split": """
import math


def for_one(alpha, saving, parameters):
    a, b = parameters.accuracy.steepness, parameters.accuracy.midpoint
    if saving <= 0:
        return parameters.num_steps
    if 4 * saving >= alpha * a:
        return parameters.min_split
    A = 0.5 + math.sqrt(0.25 - saving / (alpha * a))
    n = b - math.log(1 / A - 1) / a
    return min(max(n, parameters.min_split), parameters.num_steps)


best_split = np.vectorize(for_one, otypes=[float])
""",
        "ps2_whole": """
def whole_steps(split, alpha, saving_s, parameters):
    candidates = np.arange(parameters.min_split, parameters.num_steps + 1)
    u = [alpha * parameters.accuracy.pai(n) - saving_s * n for n in candidates]
    return candidates[np.argmax(u, axis=0)]
""",
        "ps2_savings": """
def step_savings(instance, batch_sizes):
    return [[d - instance.edge.slope_s * B - instance.edge.intercept_s for d in instance.device_step_s]
            for B in batch_sizes]
""",
    },
    "ps3": {
        "ps3_utility": """
def utility(instance, granted, split_points):
    p = instance.parameters
    B = sum(granted)
    total = 0
    for i in range(instance.num_users):
        n, d = split_points[i], instance.device_step_s[i]
        latency = n * d + p.window_s - instance.arrival_s[i]
        if granted[i]:
            latency += (p.num_steps - n) * instance.edge.step_latency_s(B) + p.transfer_s_per_user * B
        total += instance.alpha[i] * p.accuracy.pai(n) - latency
    return total
""",
        "ps3_gains": """
def gain_table(instance):
    p, rows = instance.parameters, []
    for B in range(1, instance.largest_batch + 1):
        row = []
        for alpha, d in zip(instance.alpha, instance.device_step_s):
            saving = d - instance.edge.step_latency_s(B)
            n = optimal_split(alpha, saving, p)
            row.append(alpha * (p.accuracy.pai(n) - p.accuracy.pai(p.num_steps)) + (p.num_steps - n) * saving
                       - p.transfer_s_per_user * B)
        rows.append(row)
    return np.array(rows, dtype=float)
""",
        "ps3_best_set": """
def best_set(gains):
    m, U = gains.shape
    candidates = [(0.0, [])]
    for B in range(1, m + 1):
        users = sorted(range(U), key=lambda i: gains[B - 1, i], reverse=True)[:B]
        candidates.append((sum(gains[B - 1, i] for i in users), users))
    value, users = max(candidates, key=lambda c: c[0])
    return np.array([i in users for i in range(U)]), value
""",
        "ps3_milp": """
def best_set_by_milp(gains):
    from scipy.optimize import Bounds, LinearConstraint, milp
    m, U = gains.shape
    size = np.hstack([np.kron(np.eye(m), np.ones(U)), -np.diag(np.arange(1, m + 1))])
    one = np.hstack([np.zeros(m * U), np.ones(m)])
    link = np.hstack([np.eye(m * U), -np.kron(np.eye(m), np.ones((U, 1)))])
    answer = milp(np.hstack([-gains.ravel(), np.zeros(m)]), integrality=np.ones(m * U + m), bounds=Bounds(0, 1),
                  constraints=[LinearConstraint(size, 0, 0), LinearConstraint(one, 0, 1), LinearConstraint(link, -np.inf, 0)])
    return answer.x[:m * U].reshape(m, U).round().any(axis=0), -answer.fun
""",
        "ps3_greedy": """
def where_greedy_loses():
    alone = 0.03 + 0.5 / 120
    return Instance(LatencyModel(0.005, 0.025), np.array([0.1, 0.1, 0.1, alone]), np.array([150.0, 150, 150, 0]),
                    np.full(4, 0.5), SystemParameters(transmission="corrected"))
""",
    },
    "ps4": {
        "ps4_step": """
def step(state, action):
    def value(users):
        B = len(users)
        return sum(state.gains[B, i] for i in users)

    m, U = len(state.gains) - 1, len(state.granted)
    before = [i for i in range(U) if state.granted[i]]
    if state.turn == U or len(before) == m or action not in (0, 1):
        raise ValueError
    after = before + [state.turn] * action
    return State(state.gains, state.turn + 1, np.isin(range(U), after)), value(after) - value(before), \\
        state.turn == U - 1 or len(after) == m
""",
        "ps4_priority": """
def priority(errors, alpha):
    return np.exp(alpha * np.log(abs(errors) + 1e-4))


def importance_weights(priorities, drawn, beta):
    return (priorities[drawn].min() / priorities[drawn]) ** beta
""",
        "ps4_tree": """
def tree_build(priorities):
    levels = [np.asarray(priorities, dtype=float)]
    while len(levels[0]) > 1:
        levels.insert(0, levels[0].reshape(-1, 2).sum(axis=1))
    return np.concatenate([[0.0], *levels])


def tree_find(nodes, mass):
    n = len(nodes) // 2
    return np.searchsorted(np.cumsum(nodes[n:]), mass, side="right")
""",
        "ps4_target": """
def double_q_targets(rewards, dones, online_next, target_next):
    chosen = torch.where(online_next[:, 1] > online_next[:, 0], target_next[:, 1], target_next[:, 0])
    return torch.where(dones, rewards, rewards + chosen)
""",
    },
    "ps5": {
        "ps5_step": """
def edge_step(now, inside, waiting, k, h, most):
    queue, members = list(waiting), list(inside)
    while queue and len(members) < most:
        members.append(queue.pop(0))
    gone, stay = [], []
    for name, steps in members:
        if steps > 1:
            stay.append((name, steps - 1))
        else:
            gone.append(name)
    return (now + k * len(members) + h if members else now), stay, queue, gone
""",
        "ps5_inside": """
def odds_inside(work, k, h, most, highest=300):
    logs = [0.0]
    for n in range(1, highest + 1):
        b = min(n, most)
        logs.append(logs[-1] + np.log(work) + np.log(k * b + h) - np.log(b))
    logs = np.array(logs)
    return np.exp(logs - np.logaddexp.reduce(logs))


def marginal_cost(odds, work):
    n = np.arange(len(odds))
    return (np.sum(odds * n**2) - np.sum(odds * n)**2) / work
""",
        "ps5_price": """
def find_price(cost, demand, rate, high, rounds=50):
    from scipy.optimize import bisect
    return bisect(lambda p: min(cost(rate * demand(p)), 1e9) - p, 0.0, high, xtol=1e-12)
""",
        "ps5_steps": """
def steps_at(price, device_step_s, alpha, transfer_s):
    out = []
    for d, a in zip(device_step_s, alpha):
        def f(m):
            A = lambda n: 1 / (1 + np.exp(-0.0413 * (n - 71.44)))
            return a * (A(200 - m) - A(200)) + m * d - transfer_s - price * m if m else 0.0
        out.append(max(range(121), key=f))
    return np.array(out)
""",
    },
}
