"""Tests of the tests: each of these changes of one line, made in a copy of the package, must make a test fail.

``python scripts/mutations.py [--only SUBSTRING]``; takes minutes, so ``make test`` leaves it out.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROFILES, MODELS = "tests/offloading/test_hardware.py", "tests/offloading/test_curves.py"
NAMED, NAMED_STUDY = "tests/offloading/test_named_hardware.py", "tests/study/test_hardware.py"
PROBLEM, SPLIT = "tests/offloading/test_problem.py", "tests/offloading/test_split.py"
SOLVERS = "tests/offloading/test_solvers.py"
WINDOWS, ENV = "tests/offloading/test_windows.py", "tests/learning/test_window_env.py"
REPLAY, AGENT = "tests/learning/test_replay.py", "tests/learning/test_agent.py"
HYBRID, QUALITY = "tests/diffusion/test_hybrid.py", "tests/diffusion/test_accuracy.py"
PROFILE, PERSONALIZE = "tests/diffusion/test_profile.py", "tests/diffusion/test_personalize.py"
DEVICES, TRAINING = "tests/diffusion/test_devices.py", "tests/diffusion/test_training.py"
JUDGES = "tests/diffusion/test_judges.py"
MINI, EMOJI = "tests/diffusion/test_mini.py", "tests/diffusion/test_emoji.py"
RECORDS, SWEEPS = "tests/test_tables.py", "tests/study/test_sweeps.py"
ACCURACY, ONLINE = "tests/study/test_accuracy.py", "tests/edge/test_window_game.py"
NOTEBOOKS, FILES = "tests/scripts/test_run_notebooks.py", "tests/test_files.py"

# File, fragment that occurs in it once, replacement, and the tests that should notice: a file, -k and a word.
MUTATIONS = [
    # --- offloading ---
    ("offloading/curves.py", "self.intercept_s / num_gpus)", "self.intercept_s)", f"{PROBLEM} -k sampling"),
    (
        "offloading/fits.py",
        "stats.t.ppf((1 + CONFIDENCE) / 2, len(fit",
        "stats.t.ppf(CONFIDENCE, len(fit",
        f"{MODELS} -k scipy",
    ),
    ("offloading/fits.py", "/ (len(target) - design.shape[1])", "/ len(target)", f"{MODELS} -k scipy"),
    (
        "offloading/fits.py",
        'upper = max(0.0, intervals["intercept_s"]',
        'upper = min(0.0, intervals["intercept_s"]',
        f"{MODELS} -k origin",
    ),
    ("offloading/fits.py", "if slope < 0:", "if slope < -1:", f"{MODELS} -k level_line"),
    (
        "offloading/fits.py",
        "_least_squares(design[:, 1:], seconds)",
        "_least_squares(design[:, :1], seconds)",
        f"{MODELS} -k level_line",
    ),
    ("offloading/fits.py", "(target - target.mean()) ** 2", "target ** 2", f"{MODELS} -k scipy"),
    (
        "offloading/fits.py",
        "residuals = seconds - (slope * batch + intercept)",
        "residuals = slope * batch + intercept - seconds",
        f"{MODELS} -k scipy",
    ),
    (
        "offloading/fits.py",
        '("steepness", "midpoint", "ceiling")[: len(found)]',
        '("midpoint", "steepness", "ceiling")[: len(found)]',
        f"{MODELS} -k often",
    ),
    ("offloading/problem.py", "parameters.window_s - instance.arrival_s", "instance.arrival_s", f"{PROBLEM} -k hand"),
    (
        "offloading/problem.py",
        "np.arange(len(steps), 0, -1)",
        "np.arange(len(steps), 0, -1) - 1",
        "tests/offloading/test_any_curve.py -k stepping",
    ),
    ("offloading/problem.py", "(splits < low)", "(splits <= low)", f"{PROBLEM} -k hand"),
    (
        "offloading/problem.py",
        "np.any(self.device_step_s == 0)",
        "np.any(self.device_step_s < 0)",
        f"{PROBLEM} -k bad_input",
    ),
    ("offloading/problem.py", "edge.step_latency_s(20)", "edge.step_latency_s(18)", f"{PROBLEM} -k rewards"),
    (
        "offloading/problem.py",
        "random.uniform(0, window_s, present.shape)",
        "random.uniform(0, 1, present.shape)",
        f"{PROBLEM} -k whole_window",
    ),
    ("offloading/split.py", "np.fmax(saving", "np.maximum(saving", f"{SPLIT} -k limits"),
    ("offloading/split.py", "[np.floor(split), np.ceil(split)]", "[np.round(split)]", f"{SPLIT} -k whole_steps"),
    (
        "offloading/split.py",
        "if not whole_steps and low >= curve.midpoint:",
        "if not whole_steps:",
        f"{SPLIT} -k limits",
    ),
    (
        "offloading/split.py",
        "parameters.transfer_s_per_user * np.asarray(batch_size)",
        "parameters.transfer_s_per_user",
        f"{SOLVERS} -k differences",
    ),
    (
        "offloading/solvers.py",
        "np.append(0.0, sizes * instance.edge",
        "np.append(0.0, instance.edge",
        f"{SOLVERS} -k search_over",
    ),
    (
        "offloading/solvers.py",
        "sum(axis=1) <= instance.largest_batch",
        "sum(axis=1) < instance.largest_batch",
        f"{SOLVERS} -k every_subset",
    ),
    (
        "offloading/solvers.py",
        "children[0] = sets[np.argmax(fitness)]",
        "children[0] = sets[0]",
        f"{SOLVERS} -k genetic",
    ),
    (
        "offloading/solvers.py",
        "fitness[rivals[:, 0]] >= fitness",
        "fitness[rivals[:, 0]] <= fitness",
        f"{SOLVERS} -k genetic",
    ),
    (
        "offloading/solvers.py",
        "rng.random(sets[over].shape), 2.0)",
        "rng.random(sets[over].shape), 0.5)",
        f"{SOLVERS} -k policies",
    ),
    (
        "offloading/solvers.py",
        'granted[np.argsort(instance.arrival_s, kind="stable")[: instance.largest_batch]] = True',
        "granted[: instance.largest_batch] = True",
        f"{SOLVERS} -k policies",
    ),
    ("offloading/mixed_integer.py", "cp.sum(size_is) <= 1", "cp.sum(size_is) <= 2", f"{SOLVERS} -k mixed_integer"),
    (
        "offloading/mixed_integer.py",
        "cp.sum(at) <= instance.largest_batch",
        "cp.sum(at) <= users",
        f"{SOLVERS} -k mixed_integer",
    ),
    ("offloading/mixed_integer.py", "on_edge <= 1", "on_edge <= 2", f"{SOLVERS} -k mixed_integer"),
    ("offloading/hardware.py", "np.median(", "np.mean(", f"{PROFILES} -k medians"),
    (
        "offloading/hardware.py",
        "medians[sizes <= max_batch], nonneg",
        "medians[sizes < max_batch], nonneg",
        f"{PROFILES} -k medians",
    ),
    ("offloading/fits.py", "in sizes[1:-1]", "in sizes[2:-2]", f"{PROFILES} -k bent_line"),
    ("offloading/hardware.py", "if batch < 1 or", "if batch < 0 or", f"{PROFILES} -k bad_files"),
    ("offloading/hardware.py", "if seconds <= 0:", "if seconds < 0:", f"{PROFILES} -k bad_files"),
    ("offloading/curves.py", "- 1, 0, len(batch) - 2)", "- 1, 0, len(batch) - 1)", f"{NAMED} -k table"),
    ("offloading/fits.py", "max(1.1 * (k * batch[0] + h)", "max(0.0 * (k * batch[0] + h)", f"{NAMED} -k floor"),
    ("offloading/fits.py", "for level in (1, 2):", "for level in (1,):", f"{NAMED} -k floor"),
    ("offloading/hardware.py", "/ (int(many) - int(few))", "/ int(many)", f"{NAMED} -k two_numbers"),
    ("offloading/hardware.py", '-len(value.partition(".")[2])', '-len(value.partition(".")[0])', f"{NAMED} -k digits"),
    ("offloading/hardware.py", '"end_to_end", -len(m.batch)', '"end_to_end", len(m.batch)', f"{NAMED} -k most"),
    ("offloading/hardware.py", 'm: (m.scope == "end_to_end", -len', "m: (0, -len", f"{NAMED} -k alone"),
    ("offloading/hardware.py", '["architecture"]), m.step_s)', '["architecture"]), -m.step_s)', f"{NAMED} -k fastest"),
    (
        "offloading/curves.py",
        "self.steepness / share, self.midpoint * share",
        "self.steepness / share, self.midpoint / share",
        "tests/offloading/test_any_curve.py -k shorter",
    ),
    ("offloading/hardware.py", "drawn.alpha * self.num_steps", "drawn.alpha * RELEASED_STEPS", f"{NAMED} -k fewer"),
    ("offloading/hardware.py", "max_batch=self.max_batch,", "max_batch=18,", f"{NAMED} -k published"),
    ("offloading/problem.py", "return np.array(self.odds)", "pass", f"{NAMED} -k weights"),
    ("study/hardware.py", "if far <= RESEMBLES", "if far <= 2 * RESEMBLES", f"{NAMED_STUDY} -k resemblance"),
    ("study/hardware.py", "-(-batch // num_gpus)", "batch // num_gpus + 1", f"{NAMED_STUDY} -k side_by_side"),
    ("study/hardware.py", "/ 0.1  # the reward", "/ 1.0  # the reward", f"{NAMED_STUDY} -k scenario"),
    ("study/hardware.py", "(most - evaluate(window, plan).utility)", "(most - local)", f"{NAMED_STUDY} -k truth"),
    # --- learning ---
    ("offloading/windows.py", "granted = granted & present", "granted = granted.copy()", f"{WINDOWS} -k agree"),
    (
        "offloading/problem.py",
        "return 0.1 * np.asarray(utility_s, dtype=float)",
        "return np.asarray(utility_s, dtype=float)",
        f"{PROBLEM} -k rewards",
    ),
    (
        "offloading/windows.py",
        '"share_granted": batch / self.num_users',
        '"share_granted": batch',
        f"{WINDOWS} -k agree",
    ),
    ("offloading/problem.py", "shared_by(int(count))", "shared_by(1)", f"{PROBLEM} -k rewards"),
    (
        "offloading/windows.py",
        "tuple(profiles.devices[i] for i in chosen)",
        "profiles.devices[: len(chosen)]",
        f"{WINDOWS} -k scenario",
    ),
    (
        "offloading/windows.py",
        "gpus, present, self.parameters.window_s)",
        "gpus, present, 1.0)",
        f"{WINDOWS} -k scenario",
    ),
    ("learning/decisions.py", "0.05 * np.abs(alone)", "0.5 * np.abs(alone)", f"{ENV} -k scale"),
    ("learning/decisions.py", "np.clip(observation, -10, 10).astype", "observation.astype", f"{ENV} -k rewards"),
    ("learning/decisions.py", "observation[self.done] = 0", "observation[self.done] *= 1", f"{ENV} -k rewards"),
    ("learning/decisions.py", "- count - 0.5) / 5", "- 0.5) / 5", f"{ENV} -k rank"),
    ("learning/decisions.py", "np.where(present, -half, np.inf)", "np.where(present, half, np.inf)", f"{ENV} -k order"),
    ("learning/decisions.py", "+ better.sum(axis=1) < highest", "+ better.sum(axis=1) <= highest", f"{ENV} -k cut"),
    ("learning/decisions.py", 'a["edge_step_s"][rows, a["batch"]]', 'a["edge_step_s"][rows, 1]', f"{ENV} -k released"),
    ("learning/window_env.py", "values.copy() for name, values", "values for name, values", f"{ENV} -k restored"),
    ("learning/replay.py", "max(self.largest, float", "min(self.largest, float", f"{REPLAY} -k largest"),
    ("learning/replay.py", "np.count_nonzero(tree.leaves)", "self.size() * self.n_envs", f"{REPLAY} -k two_buffers"),
    ("learning/replay.py", "running &= following != self.pos", "running &= following >= 0", f"{REPLAY} -k n_step"),
    ("learning/replay.py", "(mass >= left) & (self.nodes[2 * node + 1] > 0)", "mass >= left", f"{REPLAY} -k sums_hold"),
    ("learning/replay.py", "tree.nodes.copy()", "tree.nodes", f"{REPLAY} -k restored"),
    ("learning/training.py", "(data.weights * smooth_l1_loss", "(smooth_l1_loss", f"{AGENT} -k gradient"),
    (
        "learning/training.py",
        "if self.double else following)",
        "if not self.double else following)",
        f"{AGENT} -k book",
    ),
    (
        "learning/training.py",
        "data.rewards + (1 - data.dones) * following",
        "data.rewards + following",
        f"{AGENT} -k book",
    ),
    (
        "learning/training.py",
        "beta = 1.0 - self._current_progress_remaining",
        "beta = self._current_progress_remaining",
        f"{AGENT} -k book",
    ),
    ("learning/training.py", "< self.exploration_rate", "> self.exploration_rate", f"{AGENT} -k epsilon"),
    (
        "learning/training.py",
        "torch.nn.utils.clip_grad_norm_(self.q_net.parameters(), self.max_grad_norm)",
        "pass",
        f"{AGENT} -k book",
    ),
    ("learning/training.py", "if settings.anneal else rate", "if not settings.anneal else rate", f"{AGENT} -k book"),
    ("learning/agent.py", "np.float32(0.01) * x", "np.float32(0.1) * x", f"{AGENT} -k alike"),
    ("learning/agent.py", "x = act(x) if i < last else x", "x = act(x)", f"{AGENT} -k alike"),
    # --- diffusion ---
    ("diffusion/packet.py", "torch.isfinite(tensor).all()", "torch.isfinite(tensor).any()", f"{HYBRID} -k do_not_fit"),
    ("diffusion/hybrid.py", 'if batching == "static" and stop', "if stop", f"{HYBRID} -k handed_over"),
    ("diffusion/families.py", "/ config.scaling_factor", "* config.scaling_factor", f"{HYBRID} -k same_model"),
    ("diffusion/hybrid.py", "mul(255).round()", "mul(255)", f"{HYBRID} -k pictures"),
    ("diffusion/hybrid.py", "served > self.max_batch", "served >= self.max_batch", f"{HYBRID} -k full_edge"),
    (
        "diffusion/users.py",
        "finally:\n            _switch(pipeline, None)",
        "finally:\n            pass",
        f"{HYBRID} -k untouched",
    ),
    ("diffusion/batch.py", "tuple(tensor.shape) != shape", "tensor.ndim != 3", f"{HYBRID} -k do_not_fit"),
    (
        "diffusion/hybrid.py",
        "_run_of(packet) != _run_of(packets[0])",
        "_run_of(packet) != _run_of(packet)",
        f"{HYBRID} -k do_not_fit",
    ),
    ("diffusion/hybrid.py", "[(prompt, seed) if share_runs", "[prompt if share_runs", f"{HYBRID} -k shared_runs"),
    ("diffusion/accuracy.py", "total / (users - 1)", "total / users", f"{QUALITY} -k means_over"),
    ("diffusion/accuracy.py", "[2.5, 97.5]", "[5, 95]", f"{QUALITY} -k interval"),
    ("diffusion/accuracy.py", 'f"{prompt}/{seed}"', 'f"{prompt}/"', f"{QUALITY} -k hybrid_inference"),
    ("diffusion/accuracy.py", "describe(prompt, user) for", "describe(user, prompt) for", f"{QUALITY} -k another_text"),
    (
        "diffusion/profile.py",
        "return time.perf_counter() - start",
        "return 1000 * (time.perf_counter() - start)",
        f"{PROFILE} -k seconds",
    ),
    ("diffusion/profile.py", "2 * size**3", "size**3", f"{PROFILE} -k seconds"),
    ("diffusion/profile.py", "2 if setting.guidance else 1", "1 if setting.guidance else 2", f"{PROFILE} -k columns"),
    (
        "diffusion/profile.py",
        "recompile_limit=8 + len(setting.batch_sizes)",
        "recompile_limit=8",
        f"{PROFILE} -k compiled",
    ),
    (
        "diffusion/profile.py",
        "planned_s + prepared_s > limit_s",
        "planned_s > limit_s",
        f"{PROFILE} -k prepared_in_time",
    ),
    ("diffusion/profile.py", "error = error.__context__", "error = None", f"{PROFILE} -k captured"),
    ("diffusion/profile.py", "cudnn.allow_tf32, cudnn.benchmark = before", "pass", f"{PROFILE} -k settings_of_torch"),
    ("diffusion/personalize.py", "device=here) < share", "device=here) > share", f"{PERSONALIZE} -k tenth"),
    ("diffusion/personalize.py", "weight.mul_(strength)", "weight.mul_(1)", f"{PERSONALIZE} -k multiplies"),
    ("diffusion/personalize.py", "max(image.size)", "min(image.size)", f"{PERSONALIZE} -k square"),
    ("diffusion/personalize.py", "lora_alpha=rank", "lora_alpha=2 * rank", f"{PERSONALIZE} -k as_strong"),
    (
        "diffusion/mini.py",
        "prompts[start : start + batch],\n",
        "prompts[: len(generators)],\n",
        f"{MINI} -k seed_and",
    ),
    ("diffusion/mini.py", 'folder.glob("*/*")', 'folder.glob("*/*.safetensors")', f"{MINI} -k every_file"),
    ("diffusion/mini.py", "sorted({*sums, *found})", "sorted(sums)", f"{MINI} -k too_many"),
    ("diffusion/training.py", "predicts_noise else", "not predicts_noise else", f"{TRAINING} -k target"),
    ("diffusion/training.py", "* most).long()", "* 0.9 * most).long()", f"{TRAINING} -k target"),
    ("diffusion/training.py", "mean.copy_to(trained)", "pass", f"{TRAINING} -k running_mean"),
    ("diffusion/training.py", "mean.optimization_step = len(losses)", "pass", f"{TRAINING} -k uninterrupted"),
    ("diffusion/training.py", 'generator.set_state(state["generator"])', "pass", f"{TRAINING} -k uninterrupted"),
    ("diffusion/training.py", 'group["lr"] = base * factor(len(losses))', "pass", f"{TRAINING} -k uninterrupted"),
    ("diffusion/training.py", "if _checksum(state) != meta", "if False and meta", f"{TRAINING} -k flipped"),
    ("diffusion/training.py", ".to(weight.device) for key in", " for key in", f"{DEVICES} -k interruption"),
    ("diffusion/training.py", "value.detach().cpu().contiguous()", "value.detach().cpu()", f"{MINI} -k all_parts"),
    (
        "diffusion/mini_training.py",
        'None if out is None else out / f"checkpoint.{part}.safetensors"',
        'None if out is None else out / "checkpoint.safetensors"',
        f"{MINI} -k all_parts",
    ),
    ("diffusion/mini_training.py", "    if not decoder_only:\n", "    if True:\n", f"{MINI} -k errs_less"),
    ("diffusion/mini_training.py", ").mean() + error.diff", ").mean() - error.diff", f"{MINI} -k edge_costs"),
    ("diffusion/mini_training.py", "(back - pixels) / 2)", "(back - pixels))", f"{MINI} -k decibels"),
    ("diffusion/mini_networks.py", "beta_end=0.012", "beta_end=0.02", f"{MINI} -k noise_level"),
    ("diffusion/mini_training.py", "2 * scale.log()", "scale.log()", f"{MINI} -k whitening"),
    ("diffusion/mini_networks.py", ", *last]", "]", f"{JUDGES} -k numbers_its_words"),
    ("diffusion/judges.py", ".reshape(len(prompts), -1)", ".reshape(-1, len(prompts)).T", f"{JUDGES} -k own_seeds"),
    ("diffusion/judges_training.py", "strength = 0.3 if gently", "strength = 1.0 if gently", f"{JUDGES} -k gentle"),
    (
        "diffusion/judges_training.py",
        "owner[pick]) - to_images",
        "owner[pick]) + 9 * to_images",
        f"{JUDGES} -k learns_which",
    ),
    (
        "diffusion/emoji.py",
        "if all(row[style] is not None",
        "if any(row[style] is not None",
        f"{EMOJI} -k known_concepts",
    ),
    (
        "diffusion/emoji.py",
        "PIXELS, columns, PIXELS, 3).swapaxes(1, 2)",
        "PIXELS, columns, PIXELS, 3)",
        f"{EMOJI} -k mosaic_gives",
    ),
    (
        "diffusion/emoji.py",
        "TILES_PER_ROW, PIXELS, PIXELS, 3).swapaxes(1, 2)",
        "TILES_PER_ROW, PIXELS, PIXELS, 3)",
        f"{EMOJI} -k mosaic_gives",
    ),
    # --- study ---
    ("tables.py", "digest.update(path.read_bytes())", "digest.update(path.name.encode())", f"{RECORDS} -k stale"),
    (
        "tables.py",
        "if hashlib.sha256(text.encode()).hexdigest() == checksum",
        "if True",
        f"{RECORDS} -k cut_or_changed",
    ),
    ("study/sweeps.py", 'if "seed" in inspect', 'if "seeds" in inspect', f"{SWEEPS} -k direct"),
    ("study/sweeps.py", "first_seed + num_seeds))", "num_seeds))", f"{SWEEPS} -k first_one"),
    (
        "study/sweeps.py",
        "        batching=batching,\n        profiles=asdict",
        "        profiles=asdict",
        f"{SWEEPS} -k own_optimum",
    ),
    ("study/accuracy.py", "[2.5, 97.5]", "[5, 95]", f"{ACCURACY} -k interval"),
    ("study/accuracy.py", "lost_s=lost / num_users", "lost_s=lost", f"{ACCURACY} -k no_loss"),
    (
        "edge/window_game.py",
        "granted_gains[size - 1].sum() if size",
        "granted_gains[size].sum() if size",
        f"{ONLINE} -k raises",
    ),
    ("edge/window_game.py", "arrival.time_s / arrival.window_s", "arrival.time_s", f"{ONLINE} -k longer"),
    ("edge/window_game.py", "best_sums.shape[2] - 1) + 1)", "best_sums.shape[2] - 1))", f"{ONLINE} -k going_on"),
    (
        "edge/window_game.py",
        "np.cumsum(granted, axis=2) <= limit",
        "np.cumsum(granted, axis=2) < limit",
        f"{ONLINE} -k tuned",
    ),
    ("edge/window_game.py", "rng.permutation(instance.arrival_s)", "instance.arrival_s", f"{ONLINE} -k longer"),
    (
        "../../scripts/run_notebooks.py",
        "(self.state + self.mode + _source(path))",
        "(self.state + _source(path))",
        f"{NOTEBOOKS} -k missing_copy",
    ),
    (
        "../../scripts/run_notebooks.py",
        "path.exists() and sha256(path) == checksum",
        "path.exists()",
        f"{NOTEBOOKS} -k written",
    ),
    ("files.py", "draft.unlink(missing_ok=True)", "pass", f"{FILES} -k failed_write"),
    ("files.py", "if checksum != meta", "if False and checksum != meta", f"{FILES} -k damage"),
    ("files.py", "if not isinstance(meta, dict):", "if False:", f"{RECORDS} -k made_again"),
]

# Runs pytest on the package in the folder that is named first, and on no other that may be installed.
RUN = """
import sys, pytest, splitpoint
assert splitpoint.__file__.startswith(sys.argv[1]), splitpoint.__file__
sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *sys.argv[2:]]))
"""


def passes(tests: list[str], file: str = "", fragment: str = "", replacement: str = "") -> bool:
    """Whether the tests pass on a copy of the package, in one file of which a fragment is replaced."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch).resolve() / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        if file:
            path = source / "splitpoint" / file
            text = path.read_text()
            assert text.count(fragment) == 1, f"{fragment!r} occurs {text.count(fragment)} times in {file}"
            path.write_text(text.replace(fragment, replacement))
        environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "SPLITPOINT_ROOT": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": f"{scratch}/hypothesis",
        }
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(source), *tests], cwd=ROOT, env=environment, capture_output=True, text=True
        )
    if done.returncode not in (0, 1):  # no verdict of the tests: none was found, or the package does not import
        raise RuntimeError(f"pytest {' '.join(tests)} ended with status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations that have this in their file, fragment or replacement")
    only = parser.parse_args().only
    chosen = [mutation for mutation in MUTATIONS if any(only in part for part in mutation[:3])]
    files, _, words = zip(*(tests.split() for *_, tests in chosen))
    if not passes([*sorted(set(files)), "-k", " or ".join(sorted(set(words)))]):
        sys.exit("a test fails on the unchanged package: mend that first")
    survived = 0
    for number, (file, fragment, replacement, tests) in enumerate(chosen, 1):
        start = time.monotonic()
        alive = passes(tests.split(), file, fragment, replacement)
        survived += alive
        verdict = "SURVIVED" if alive else "caught"
        print(
            f"[{number}/{len(chosen)}, {time.monotonic() - start:.0f} s] {verdict}  {file}: "
            f"{' '.join(fragment.split())}  ->  {' '.join(replacement.split())}",
            flush=True,
        )
    print(f"{len(chosen) - survived} of {len(chosen)} mutations caught")
    sys.exit(survived > 0)


if __name__ == "__main__":
    main()
