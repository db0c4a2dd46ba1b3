"""Each recipe of ``docs/recipes.md`` runs as it is printed there, only shorter; Ray's in ``serving/test_ray_app.py``."""

import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from splitpoint.files import data_path, project_root
from splitpoint.offloading.solvers import _SOLVERS

pytestmark = pytest.mark.slow

RECIPES = dict(
    re.findall(
        r"\*\*([^*]+)\.\*\*[^`]*(?:`[^`\n]+`[^`]*)*```python\n(.*?)```",
        (project_root() / "docs" / "recipes.md").read_text(),
        flags=re.DOTALL,
    )
)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    tmp_path.joinpath("data").symlink_to(project_root() / "data")
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = dict(_SOLVERS)
    yield tmp_path
    _SOLVERS.clear()
    _SOLVERS.update(before)
    plt.close("all")


def run(name: str, **shorter: str) -> dict:
    code = RECIPES[name]
    for long, short in shorter.items():
        assert long in code, f"the recipe no longer holds {long}"
        code = code.replace(long, short)
    return exec(compile(code, name, "exec"), namespace := {"__name__": "recipe"}) or namespace


def test_every_recipe_is_tried_here():
    assert set(RECIPES) == {
        "Your machine",
        "Your solver",
        "Another accuracy curve, and an agent for it",
        "Your own pictures as a user",
        "Your policy for the living edge",
        "Your own requests, from a CSV",
        "The sweep on a cluster",
        "An edge on Ray",
    }


def test_your_machine(scratch):
    scratch.joinpath("results").mkdir()
    shipped = sorted(data_path("latency_profiles").glob("cpu*.csv*"))
    for path in shipped:
        shutil.copy(path, scratch / "results" / path.name.replace(shipped[0].stem, "my_machine"))
    table = run("Your machine", **{"(4, 12, 20)": "(4,)"})["table"]
    assert set(table.method) >= {"exact", "greedy"} and table.optimality.max() <= 1 + 1e-9


def test_your_solver(scratch):
    table = run("Your solver")["table"]
    mine = table[table.method == "grant who gains"]
    assert len(mine) == 600 and 0.5 < mine.optimality.mean() < 1


def test_another_curve_and_an_agent(scratch):
    found = run("Another accuracy curve, and an agent for it", **{"100_000": "20_000", "(4, 12, 20)": "(4,)"})
    mine = found["table"][found["table"].method == "my agent"]
    assert mine.optimality.mean() > 0.5
    assert (scratch / "checkpoints" / "my_agent_final.safetensors").exists()


def test_your_own_pictures(scratch):
    from PIL import Image

    from splitpoint.diffusion import load_emoji

    shown = load_emoji(["openmoji"], ["birthday cake", "umbrella", "rocket"])
    scratch.joinpath("my_pictures").mkdir()
    for image, prompt in zip(shown.images, shown.prompts):
        Image.fromarray(image).resize((96, 96)).save(scratch / "my_pictures" / f"{prompt}.png")
    run(
        "Your own pictures as a user",
        **{
            'out="checkpoints/me", ': 'out="checkpoints/me", steps=2, ',
            "num_steps=50": "num_steps=6",
            "split_points=20": "split_points=2",
        },
    )
    assert Image.open(scratch / "mine.png").size == (64, 64)


def test_your_policy(scratch):
    table = run(
        "Your policy for the living edge", **{"horizon_s=600": "horizon_s=60", "replications=4": "replications=1"}
    )["table"]
    share = table.set_index("policy").share
    assert len(table) == 3 and share.max() <= 1 + 1e-9
    assert share["adaptive_price"] > share["while there is room"] > 0


def test_your_own_requests(scratch):
    rows = [f"{second},ann" for second in np.random.default_rng(0).uniform(0, 60, 200).cumsum() / 100]
    scratch.joinpath("my_requests.csv").write_text("\n".join(["time,who", *rows]))
    table = run("Your own requests, from a CSV", **{"replications=4": "replications=2"})["table"]
    assert len(table) == 2 and 0 < table.share.min() <= table.share.max() <= 1 + 1e-9


def test_the_sweep_on_a_cluster(scratch):
    pytest.importorskip("dask.distributed")
    given = {
        '"scheduler:8786"': "processes=False, dashboard_address=None",
        "range(1, 21)": "(4, 6)",
        "(4, 8, 16)": "(4,)",
        "5000": "8",
        "num_paths=1000": "rates_hz=(2.0, 8.0), num_paths=2, horizon_s=20.0",
    }
    found = run("The sweep on a cluster", **given)
    found["client"].close()
    from splitpoint.study.living_edge import policy_sweep
    from splitpoint.study.sweeps import reward_sweep

    alone = reward_sweep("alone", num_users=(4, 6), num_edge_gpus=(4,), num_seeds=8)
    pd.testing.assert_frame_equal(found["table"], alone)
    options = dict(names=("window_plan", "posted_price"), rates_hz=(2.0, 8.0), num_paths=2, horizon_s=20.0)
    pd.testing.assert_frame_equal(found["over_time"], policy_sweep("alone_edge", **options), check_exact=True)
