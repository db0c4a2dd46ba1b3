"""What the tests hand in: the source solutions, stubs, and wrong answers with the test cells that must catch them."""

import ast
import re

#: assignment, name of the mistake, cell that holds it, text in the source solution, what is handed in instead, cells lost
WRONG = [
    ("ps1", "warm-up counted among the repeats", "ps1_time_step",
     "    for _ in range(warmup):\n        step(batch_size)\n    seconds = []\n    for _ in range(repeats):",
     "    seconds = []\n    for _ in range(repeats):", {"ps1_time_step_test"}),
    ("ps1", "off by one in the number of repeats", "ps1_time_step", "range(repeats)", "range(repeats - 1)",
     {"ps1_time_step_test"}),
    ("ps1", "one order for all rounds", "ps1_order", "[rng.permutation(batch_sizes) for _ in range(rounds)]",
     "[rng.permutation(batch_sizes)] * rounds", {"ps1_order_test"}),
    ("ps1", "the visible line hard-coded", "ps1_fit", "return k, h", "return 0.2, 0.3", {"ps1_fit_test"}),
    ("ps1", "normal quantile instead of Student's", "ps1_intervals", "stats.t.ppf((1 + confidence) / 2, len(batch) - 2)",
     "stats.norm.ppf((1 + confidence) / 2)", {"ps1_intervals_test"}),
    ("ps1", "looks upwards only", "ps1_fails", "abs(median - line.step_latency_s(size))",
     "(median - line.step_latency_s(size))", {"ps1_fails_test"}),
    ("ps1", "the visible failure hard-coded", "ps1_fails", "    return None", "    return 16", {"ps1_fails_test"}),
    ("ps2", "cost added instead of subtracted", "ps2_objective", "- saving_s * n", "+ saving_s * n",
     {"ps2_objective_test"}),
    ("ps2", "numbers only", "ps2_objective", "np.exp(", "__import__('math').exp(", {"ps2_objective_test"}),
    ("ps2", "concave everywhere", "ps2_curvature", "return low >= midpoint", "return low > 50", {"ps2_is_concave_test"}),
    ("ps2", "the right end decides", "ps2_curvature", "return low >= midpoint", "return high >= midpoint",
     {"ps2_is_concave_test"}),
    ("ps2", "the middle decides", "ps2_curvature", "return low >= midpoint", "return (low + high) / 2 >= midpoint",
     {"ps2_is_concave_test"}),
    ("ps2", "the midpoint itself left out", "ps2_curvature", "return low >= midpoint", "return low > midpoint",
     {"ps2_is_concave_test"}),
    ("ps2", "minimum instead of maximum", "ps2_best_split", "accuracy = (1 + np.sqrt", "accuracy = (1 - np.sqrt",
     {"ps2_interior_test", "ps2_edges_test"}),
    ("ps2", "off by one in the step count", "ps2_best_split", "high = parameters.min_split, parameters.num_steps",
     "high = parameters.min_split, parameters.num_steps - 1", {"ps2_edges_test"}),
    ("ps2", "the visible split hard-coded", "ps2_best_split", "split = np.clip(b + np.log(accuracy / (1 - accuracy)) / a, low, high)",
     "split = np.full(r.shape, 115.21)", {"ps2_interior_test", "ps2_edges_test"}),
    ("ps2", "the default's constants typed in", "ps2_best_split", "parameters.accuracy.steepness, parameters.accuracy.midpoint",
     "0.0413, 71.44", {"ps2_interior_test"}),
    ("ps2", "a plain if", "ps2_best_split", "    r = np.full(", "    if saving_s <= 0:\n        return float(high)\n    r = np.full(",
     {"ps2_edges_test"}),
    ("ps2", "the cases forgotten", "ps2_best_split", "np.where(saving_s <= 0, high, np.where(inside, split, low))", "split",
     {"ps2_edges_test"}),
    ("ps2", "nothing decided at alpha = saving = 0", "ps2_best_split", "np.where(saving_s <= 0, high,", "np.where(saving_s < 0, high,",
     {"ps2_edges_test"}),
    ("ps2", "rounded to the nearest step", "ps2_whole", "return np.where(u_up > u_down, up, down)", "return np.round(split)",
     {"ps2_whole_test"}),
    ("ps2", "rounded down", "ps2_whole", "return np.where(u_up > u_down, up, down)", "return down", {"ps2_whole_test"}),
    ("ps2", "a step beyond the last", "ps2_whole", "np.ceil(split)", "np.floor(split) + 1", {"ps2_whole_test"}),
    ("ps2", "the package's whole steps", "ps2_whole", "return np.where(u_up > u_down, up, down)",
     "return optimal_split(alpha, saving_s, parameters, whole_steps=True)", {"ps2_whole_test"}),
    ("ps2", "batch off by one", "ps2_savings", "np.asarray(batch_sizes)[:, None]", "(np.asarray(batch_sizes)[:, None] - 1)",
     {"ps2_savings_test"}),
    ("ps2", "the intercept's sign", "ps2_savings", "+ instance.edge.intercept_s", "- instance.edge.intercept_s", {"ps2_savings_test"}),
    ("ps2", "users in rows", "ps2_savings", "return instance.device_step_s - edge_step_s",
     "return (instance.device_step_s - edge_step_s).T", {"ps2_savings_test"}),
    ("ps2", "arrays only", "ps2_savings", "np.asarray(batch_sizes)[:, None]", "batch_sizes[:, None]", {"ps2_savings_test"}),
    ("ps3", "hand-over paid once for the batch", "ps3_utility", "p.transfer_s_per_user * batch, 0)",
     "p.transfer_s_per_user, 0)", {"ps3_utility_test"}),
    ("ps3", "off by one in the step count", "ps3_utility", "(p.num_steps - split_points)", "(p.num_steps - split_points + 1)",
     {"ps3_utility_test"}),
    ("ps3", "neither edge time nor hand-over", "ps3_utility",
     "np.where(granted, (p.num_steps - split_points) * edge_step_s + p.transfer_s_per_user * batch, 0)", "0", {"ps3_utility_test"}),
    ("ps3", "everyone's accuracy that of all steps at home", "ps3_utility", "p.accuracy.pai(split_points)", "p.accuracy.pai(p.num_steps)",
     {"ps3_utility_test"}),
    ("ps3", "batch off by one", "ps3_gains", "np.arange(1, instance.largest_batch + 1)", "np.arange(instance.largest_batch)",
     {"ps3_gains_test"}),
    ("ps3", "no accuracy lost", "ps3_gains", "instance.alpha * (pai(n) - pai(p.num_steps)) + ", "", {"ps3_gains_test"}),
    ("ps3", "no hand-over", "ps3_gains", " - p.transfer_s_per_user * batch", "", {"ps3_gains_test"}),
    ("ps3", "a row for every user", "ps3_gains", "instance.largest_batch + 1", "instance.num_users + 1", {"ps3_gains_test"}),
    ("ps3", "users in rows", "ps3_gains", "    return instance.alpha * (pai(n) - pai(p.num_steps)) + ",
     "    saving, n, batch = saving.T, n.T, batch.T\n    return instance.alpha[:, None] * (pai(n) - pai(p.num_steps)) + ",
     {"ps3_gains_test"}),
    ("ps3", "smallest gains instead of largest", "ps3_best_set", "np.argsort(-row)", "np.argsort(row)", {"ps3_best_set_test"}),
    ("ps3", "one ranking for all sizes", "ps3_best_set", "np.argsort(-row)", "np.argsort(-gains[0])", {"ps3_best_set_test"}),
    ("ps3", "sizes up to the number of users", "ps3_best_set", "    for batch, row in enumerate(gains, 1):\n",
     "    for batch in range(1, gains.shape[1] + 1):\n        row = gains[batch - 1]\n", {"ps3_best_set_test"}),
    ("ps3", "greedy instead of exact", "ps3_best_set", "            best = row[chosen].sum()",
     "            if granted.sum() < batch - 1:\n                break\n            best = row[chosen].sum()",
     {"ps3_best_set_test"}),
    ("ps3", "the visible set hard-coded", "ps3_best_set", "    return granted, best",
     "    return np.arange(gains.shape[1]) < 2, 6.0", {"ps3_best_set_test"}),
    ("ps3", "two batch sizes at once", "ps3_milp", "cp.sum(z) <= 1", "cp.sum(z) <= 2", {"ps3_milp_test"}),
    ("ps3", "a matrix product of gains and choices", "ps3_milp", "cp.multiply(gains, y)", "gains * y", {"ps3_milp_test"}),
    ("ps3", "a product of sizes and choices", "ps3_milp", "cp.multiply(np.arange(1, m + 1), z)", "np.arange(1, m + 1) * z",
     {"ps3_milp_test"}),
    ("ps3", "columns linked instead of rows", "ps3_milp", "[y[:, i] <= z for i in range(users)]", "[y <= z]", {"ps3_milp_test"}),
    ("ps3", "an instance on which greedy is optimal", "ps3_greedy", "device = 0.155", "device = 0.17",
     {"ps3_greedy_test"}),
    ("ps3", "the released hand-over time", "ps3_greedy", 'SystemParameters(transmission="corrected")', "SystemParameters()",
     {"ps3_greedy_test"}),
    ("ps4", "the others' loss forgotten", "ps4_step", "value[1] - value[0], bool(done)",
     "action * state.gains[granted.sum(), state.turn], bool(done)", {"ps4_step_test"}),
    ("ps4", "off by one at the end of the window", "ps4_step", "state.turn + 1 == users", "state.turn + 2 >= users",
     {"ps4_step_test"}),
    ("ps4", "the given state changed", "ps4_step", "state.granted.copy()", "state.granted", {"ps4_step_test"}),
    ("ps4", "the visible rewards hard-coded", "ps4_step", "value[1] - value[0], bool(done)",
     "(5.0 if granted.sum() == 1 else 1.0), bool(done)", {"ps4_step_test"}),
    ("ps4", "negative errors are no surprise", "ps4_priority", "np.abs(errors)", "np.maximum(errors, 0)",
     {"ps4_priority_test"}),
    ("ps4", "weights that do not correct", "ps4_priority", "* share) ** -beta", "* share) ** beta", {"ps4_priority_test"}),
    ("ps4", "goes left on equality", "ps4_tree", "mass >= left", "mass > left", {"ps4_tree_test"}),
    ("ps4", "plain instead of double Q-learning", "ps4_target", "best = online_next", "best = target_next",
     {"ps4_target_test"}),
    ("ps4", "nothing after a decision counts", "ps4_target", "(~dones) * target_next", "0 * target_next",
     {"ps4_target_test", "ps4_train_test"}),
    ("ps4", "never learns", "ps4_train", "            adam.step()\n", "", {"ps4_train_test"}),
    ("ps4", "costs learned instead of rewards", "ps4_train", "actions, rewards, following, dones)",
     "actions, -rewards, following, dones)", {"ps4_train_test"}),
]


def wrong_cell(solution: str, right: str, wrong: str) -> str:
    """A solution cell with one mistake in it."""
    assert solution.count(right) == 1, f"the source solution no longer holds {right!r} once"
    return solution.replace(right, wrong)


def stub_cell(solution: str) -> str:
    """The same functions, returning None."""
    functions = [node for node in ast.parse(solution).body if isinstance(node, ast.FunctionDef)]
    return "\n".join(f"def {f.name}({ast.unparse(f.args)}):\n    return None\n" for f in functions)


def without_markers(solution: str) -> str:
    """A source solution as a student would write it."""
    return re.sub(r"^ *### (BEGIN|END) SOLUTION\n?", "", solution, flags=re.MULTILINE)
