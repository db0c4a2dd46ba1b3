"""The runs behind the tables in ``data/learning`` and the agents in ``data/agents``.

``splitpoint train-agent NAME`` makes one of them: ``agents``, ``ablation``, ``curves``,
``optimality``, ``outside``, ``cost``. Each training is kept when it is done, so an interrupted command goes on where it
stopped.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from splitpoint.files import can_write, data_path, project_root, results_path, write_meta, write_rows
from splitpoint.learning.agent import COMMITTED, Agent, evaluate_agent, load_agent
from splitpoint.learning.settings import TrainingSettings
from splitpoint.learning.training import train_agent
from splitpoint.learning.window_env import OffloadingVecEnv
from splitpoint.offloading import SystemParameters, solve
from splitpoint.offloading.windows import Scenario, Windows

SEEDS = (0, 1, 2)
ALL_SEEDS_OF = 2026
HELD_OUT = Scenario((4, 20), (4, 16))

#: the paper's method, at the length that the ablation uses
DQN = TrainingSettings(learner="dqn", decisions=80_000, max_users=40)
#: the second learner, at about the same training time
PPO = TrainingSettings(
    learner="ppo", decisions=250_000, num_envs=128, batch_size=1024, learning_rate=2e-3, max_grad_norm=0.5, max_users=40
)
AGENTS = {
    "drl_convex": replace(PPO, decisions=4_000_000, rollout=64, learning_rate=1e-3),
    "dqn": replace(DQN, decisions=300_000, updates_per_step=4, batch_size=512, buffer_size=200_000),
}
#: the settings of the released code, as far as they can be run: always greedy, one window, one update a step
RELEASE = TrainingSettings(
    learner="dqn",
    scenario=Scenario((12, 12), (16, 16)),
    features="released",
    reward="released",
    max_users=20,
    decisions=12_000,
    num_envs=1,
    hidden=(256, 256, 256),
    activation="leaky_relu",
    learning_rate=1e-4,
    anneal=False,
    weight_decay=4e-4,
    batch_size=128,
    max_grad_norm=2.0,
    buffer_size=400_000,
    learning_starts=5_000,
    updates_per_step=1,
    target_update=2_000,
    epsilon=(0.0, 0.0),
    beta=None,
    two_buffers=True,
    double=False,
    fixed_windows=1,
)
ABLATION = {
    "prioritized, double (ours)": DQN,
    "uniform replay": replace(DQN, priority=0.0, beta=None),
    "no importance weights": replace(DQN, beta=None),
    "two buffers": replace(DQN, two_buffers=True),
    "single Q-learning": replace(DQN, double=False),
    "3-step returns": replace(DQN, n_steps=3),
    "reward: difference": replace(DQN, reward="difference"),
    "reward: released": replace(DQN, reward="released"),
    "features: released": replace(DQN, features="released", max_users=20),
    "features: current batch only": replace(DQN, features="current"),
    "features: with the cut": replace(DQN, features="cut"),
    "order: by gain": replace(DQN, order="gain"),
    "always greedy": replace(DQN, epsilon=(0.0, 0.0)),
    "one window": replace(DQN, fixed_windows=1),
    "the release as it stands": RELEASE,
    "PPO": PPO,
}
CURVES = {
    "static edge": Scenario((12, 12), (16, 16)),
    "dynamic edge": Scenario((12, 12), (4, 16)),
    "dynamic number of users": Scenario((4, 20), (16, 16)),
    "capable devices only": Scenario((12, 12), (16, 16), (0, 1)),
}
CORRECTED = SystemParameters(transmission="corrected")
OUTSIDE = {
    "4-20 users, 4-16 GPUs (trained on)": HELD_OUT,
    "1-3 users": Scenario((1, 3), (4, 16)),
    "21-40 users": Scenario((21, 40), (4, 16)),
    "2 GPUs": Scenario((4, 20), (2, 2)),
    "32 GPUs": Scenario((4, 20), (32, 32)),
    "corrected transmission": Scenario((4, 20), (4, 16), parameters=CORRECTED),
    "fastest device only": Scenario((4, 20), (4, 16), (0,)),
    "slowest device only": Scenario((4, 20), (4, 16), (7,)),
}
BASELINES = ("exact", "genetic", "greedy", "all_edge", "all_local", "random")


def held_out(n: int = 1000, scenario: Scenario = HELD_OUT) -> Windows:
    """The windows that every agent and baseline is judged on; never trained on."""
    return scenario.sample(n, np.random.default_rng(ALL_SEEDS_OF))


def summary(optimality) -> dict[str, float]:
    """Mean, 1st percentile and minimum, as the tables hold them."""
    return {
        "mean": round(float(np.mean(optimality)), 6),
        "p1": round(float(np.percentile(optimality, 1)), 6),
        "min": round(float(np.min(optimality)), 6),
    }


def trained(name: str, settings: TrainingSettings, windows: Windows | None = None) -> Agent:
    """The agent of these settings: from ``results/agents`` if it was trained before, else trained and kept there."""
    digest = hashlib.sha256(settings.to_json().encode()).hexdigest()[:10]
    path = results_path("agents", f"{name.replace(' ', '_').replace(':', '')}-{digest}")
    if not path.with_suffix(".json").exists():
        agent = train_agent(settings, checkpoint=path, held_out=windows, progress=False)
        agent.save(path)
        path.with_suffix(".training.safetensors").unlink(missing_ok=True)
        print(
            f"{name}, seed {settings.seed}: {agent.train_s} s, optimality {agent.curve[-1]['optimality']:.4f}",
            flush=True,
        )
    return load_agent(path)


def ablation() -> Iterable[dict]:
    """(c) Every ingredient changed alone; same number of decisions, three seeds, judged on the same windows."""
    windows = held_out()
    for seed in SEEDS:
        for variant, settings in ABLATION.items():
            agent = trained(variant, replace(settings, seed=seed))
            last = agent.curve[-1]
            yield {
                "variant": variant,
                "seed": seed,
                **summary(evaluate_agent(agent, windows)["optimality"]),
                "decisions": last["decisions"],
                "episodes": last["episodes"],
            }


def curves() -> Iterable[dict]:
    """(a) Reward, accuracy and latency against episodes, for the settings that the released code names."""
    for setting, scenario in CURVES.items():
        windows = held_out(300, scenario)
        best = windows.outcomes(windows.exact())
        for seed in SEEDS:
            for learner, settings in (("dqn", DQN), ("ppo", PPO)):
                settings = replace(
                    settings, scenario=scenario, max_users=None, seed=seed, decisions=settings.decisions // 2
                )
                for row in trained(f"{setting} {learner}", settings, windows).curve:
                    yield {
                        "setting": setting,
                        "learner": learner,
                        "seed": seed,
                        **_rounded(row),
                        **_rounded(
                            {f"exact_{name}": float(best[name].mean()) for name in ("reward", "accuracy", "latency_s")}
                        ),
                    }


def committed_agents() -> dict[str, Agent]:
    """The agents of ``data/agents`` by name."""
    return {path.stem: load_agent(path) for path in sorted(data_path("agents").glob("*.safetensors"))}


def optimality() -> Iterable[dict]:
    """(b) Every learner and baseline on the same 1 000 held-out windows, one row a window."""
    windows = held_out()
    decided = {f"agent ({name})": agent.decide(windows) for name, agent in committed_agents().items()}
    for method in BASELINES:
        options = [{"seed": row} if method in ("genetic", "random") else {} for row in range(len(windows))]
        granted = np.zeros(windows.alpha.shape, bool)
        for row, option in enumerate(options):
            granted[row, : windows.num_users[row]] = solve(windows.instance(row), method, **option).granted
        decided[method] = granted
    gpus = np.rint(windows.slope_s.max() * 4 / windows.slope_s).astype(int)
    for method, granted in decided.items():
        outcome, share = windows.outcomes(granted), windows.optimality(granted)
        for row in range(len(windows)):
            yield {
                "method": method,
                "window": row,
                "num_users": int(windows.num_users[row]),
                "num_edge_gpus": int(gpus[row]),
                **_rounded({"optimality": share[row], "reward": outcome["reward"][row]}),
            }


def outside() -> Iterable[dict]:
    """(e) The committed agents where they were not trained, 1 000 windows a setting."""
    for setting, scenario in OUTSIDE.items():
        windows = held_out(1000, scenario)
        for name, agent in committed_agents().items():
            yield {
                "setting": setting,
                "agent": name,
                "windows": len(windows),
                **summary(evaluate_agent(agent, windows)["optimality"]),
            }


def cost() -> Iterable[dict]:
    """(f) Episodes and decisions a processor second: stepping alone, training ours, and the released settings run
    plainly."""
    env, rng = OffloadingVecEnv(Scenario(), 128), np.random.default_rng(0)
    env.reset()
    actions = rng.integers(0, 2, (500, 128))
    start = time.process_time()
    for action in actions:
        env.step(action)
    spent = time.process_time() - start
    yield {
        "run": "stepping 128 windows, random decisions",
        "decisions_per_s": round(actions.size / spent),
        "episodes_per_s": round(env.episodes / spent, 1),
        "seconds": round(spent, 2),
    }
    ours = {
        "DQN, 64 windows, U 1-20, C 4-16": replace(DQN, decisions=30_000),
        "PPO, 128 windows, U 1-20, C 4-16": replace(PPO, decisions=80_000),
        "released settings, one window, 12 users, 16 GPUs": replace(RELEASE, decisions=6_000),
    }
    for run, settings in ours.items():
        agent = train_agent(settings, looks=1, progress=False)
        last = agent.curve[-1]
        episodes, decisions, seconds = last["episodes"], last["decisions"], agent.train_s
        if settings.learning_starts >= 5_000 and settings.num_envs == 1:
            warm = train_agent(settings, decisions=settings.learning_starts, looks=1, progress=False)
            episodes, decisions = episodes - warm.curve[-1]["episodes"], decisions - warm.curve[-1]["decisions"]
            seconds -= warm.train_s
        yield {
            "run": run,
            "decisions_per_s": round(decisions / seconds),
            "episodes_per_s": round(episodes / seconds, 1),
            "seconds": round(seconds, 2),
        }


def agents() -> None:
    """Train the agents that ship with the project and write them to ``data/agents``."""
    for name, settings in AGENTS.items():
        agent = trained(name, settings, HELD_OUT.sample(500, np.random.default_rng(5)))
        path = data_path(COMMITTED[0], name)
        agent.save(path)
        share = summary(evaluate_agent(agent, held_out())["optimality"])
        for file in (path.with_suffix(".safetensors"), path.with_suffix(".json")):
            write_meta(
                file,
                kind="trained",
                command="splitpoint train-agent agents",
                seed=settings.seed,
                settings={"train_s": agent.train_s, "optimality": share},
                source="this project",
                licence="MIT",
            )
        print(f"{name}: {share}, {agent.train_s} s", flush=True)


TABLES: dict[str, tuple[Callable[[], Iterable[dict]], str]] = {
    "ablation": (ablation, "trained"),
    "curves": (curves, "trained"),
    "optimality": (optimality, "simulated"),
    "outside": (outside, "simulated"),
    "cost": (cost, "measured"),
}


def write_table(name: str) -> Path:
    """Make one of TABLES and write it with its sidecar to ``data/learning``."""
    function, kind = TABLES[name]
    path = can_write("data", data_path("learning", f"{name}.csv"))
    write_rows(path, function())
    write_meta(
        path,
        kind=kind,
        command=f"splitpoint train-agent {name}",
        seed=ALL_SEEDS_OF,
        settings=_settings_of(name),
        source="this project",
        licence="MIT",
    )
    return path


def _settings_of(name):
    if name == "ablation":
        return {variant: json.loads(settings.to_json()) for variant, settings in ABLATION.items()}
    return {"what": " ".join(TABLES[name][0].__doc__.split())}


def _rounded(row: dict) -> dict:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = "agents: train the agents that ship; the others: a table of notebook 07, with the trainings it needs"
    parser.add_argument("name", choices=("agents", *TABLES), help=what)
    name = parser.parse_args().name
    torch.set_num_threads(1)
    if name == "agents":
        agents()
    else:
        print(write_table(name).relative_to(project_root()))


if __name__ == "__main__":
    main()
