"""Each recipe of the README runs as it is printed there, only shorter."""

import re
import shutil

import matplotlib.pyplot as plt
import pytest

from splitpoint.files import data_path, project_root
from splitpoint.offloading.solvers import _SOLVERS

RECIPES = dict(
    re.findall(
        r"\*\*([^*]+)\.\*\*[^`]*(?:`[^`\n]+`[^`]*)*```python\n(.*?)```",
        (project_root() / "README.md").read_text().split("### Recipes")[1],
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


def test_there_are_four_recipes():
    assert set(RECIPES) == {
        "Your machine",
        "Your solver",
        "Another accuracy curve, and an agent for it",
        "Your own pictures as a user",
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
            'out="checkpoints/me")': 'out="checkpoints/me", steps=2)',
            "num_steps=50": "num_steps=6",
            "split_points=20": "split_points=2",
        },
    )
    assert Image.open(scratch / "mine.png").size == (64, 64)
