"""What holds of the project as a whole: arrows between the rooms, pins, provenance, notebooks, size."""

import ast
import importlib
import json
import re
import statistics
import subprocess
import sys
import tomllib
from itertools import chain, pairwise
from pathlib import Path

import pytest

from splitpoint.files import KINDS, meta_path, project_root, read_meta

ROOT = project_root()
SOURCE = ROOT / "src" / "splitpoint"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
GROUND = {"checks", "files", "lazy", "progress", "registry", "tables"}
MAY_IMPORT = {
    "checks": set(),
    "files": set(),
    "lazy": set(),
    "progress": set(),
    "registry": {"checks"},
    "tables": {"checks", "files", "progress"},
    "diffusion": GROUND,
    "offloading": GROUND,
    "edge": GROUND | {"offloading"},
    "learning": GROUND | {"offloading", "edge"},
    "serving": GROUND | {"offloading", "edge", "diffusion"},
    "study": GROUND | {"offloading", "edge", "learning", "diffusion", "serving"},
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are written in full"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        rooms |= {name.split(".")[1] for name in names if name.startswith("splitpoint.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_import_arrows(room):
    for path in [SOURCE / f"{room}.py"] if room in GROUND else sorted((SOURCE / room).rglob("*.py")):
        assert imported_rooms(path) <= MAY_IMPORT[room] | {room}, path.name


@pytest.mark.parametrize(
    "module, absent",
    [
        (
            "splitpoint.offloading",
            {"torch", "diffusers", "stable_baselines3", "matplotlib", "cvxpy", "highspy", "splitpoint.diffusion"},
        ),
        ("splitpoint.diffusion.profile", {"pandas", "torchmetrics", "matplotlib", "splitpoint.offloading"}),
    ],
)
def test_light_imports(module, absent):
    pytest.importorskip("diffusers")
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not absent & set(loaded)


@pytest.mark.parametrize("room", ["diffusion", "learning"])
def test_names_that_are_imported_on_first_use_are_where_they_are_said_to_be(room):
    module = importlib.import_module(f"splitpoint.{room}")
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match=f"module 'splitpoint.{room}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_environment_repeats_the_pinned_list():
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    section = (ROOT / "environment.yml").read_text().split("- pip:\n")[1]
    assert [line.strip().removeprefix("- ") for line in section.splitlines()] == pins
    for pin in pins:
        assert re.fullmatch(r"[\w.-]+==[\w.]+ +# .{5,}", pin), f"{pin}: a pin and why the package is there"


def data_files() -> list[Path]:
    return [
        p
        for p in (ROOT / "data").rglob("*")
        if p.is_file() and not p.name.endswith(".meta.json") and p.name not in ("README.md", ".gitignore")
    ]


def sidecar_of(path: Path) -> Path:
    """A file's own sidecar; the files of a pipeline's folder share the one that lists them all."""
    own = meta_path(path)
    mini = ROOT / "data" / "models" / "mini"
    if not own.exists() and mini in path.parents:
        return meta_path(mini / "model_index.json")
    return own


def test_every_data_file_has_provenance():
    for path in data_files():
        sidecar = sidecar_of(path)
        assert sidecar.exists(), f"{path.relative_to(ROOT)} has no sidecar"
        meta = json.loads(sidecar.read_text())
        assert meta["kind"] in KINDS and meta["command"] and meta["date_utc"] and meta["device"] and meta["versions"]
        if meta_path(path).exists():
            read_meta(path)


def test_every_data_file_is_in_the_data_readme():
    text = (ROOT / "data" / "README.md").read_text()
    for path in data_files():
        parts = path.relative_to(ROOT / "data").parts
        names = ["/".join(parts[:i]) + ("/" if i < len(parts) else "") for i in range(1, len(parts) + 1)]
        assert any(f"`{name}`" in text for name in names), f"{'/'.join(parts)} is not in data/README.md"
        if parts[0] in ("agents", "learning"):  # listed as folders, and what is in them by name
            row = next(line for line in text.splitlines() if f"`{parts[0]}/`" in line)
            assert f"`{path.stem}`" in row, f"{'/'.join(parts)} is not in data/README.md"


def test_no_pickles_and_small_enough():
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in tracked.stdout.split("\0") if name and (ROOT / name).exists()]
    assert not [f.name for f in files if f.suffix in {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"}]
    assert sum(f.stat().st_size for f in files) < 50e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_as_a_clean_run_gives_it(path):
    notebook = json.loads(path.read_text())
    cells = notebook["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and 'MODE = "fast"' in "".join(tagged[0]["source"])
    lengths = [sum(bool(line.strip()) for line in "".join(c["source"]).splitlines()) for c in code]
    assert statistics.median(lengths) <= 8 and max(lengths) <= 25
    assert max(len(line) for c in code for line in "".join(c["source"]).splitlines()) <= 126  # a page shows it whole
    assert len(cells) - len(code) >= 1.2 * len(code)
    assert len(cells) <= 60 and path.stat().st_size <= 600_000
    text = json.dumps(outputs)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|opt|usr|Users)/", text), "an absolute path in an output"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb")), ids=lambda p: p.stem)
def test_solutions_ran_to_their_end(path):
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    outputs = [o for cell in code for o in cell["outputs"]]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|opt|usr|Users)/", json.dumps(outputs))


def test_notebooks_are_linked_in_order():
    for path, following in pairwise(NOTEBOOKS):
        last = json.loads(path.read_text())["cells"][-1]
        assert following.name in "".join(last["source"]), f"{path.name} does not end with a link to {following.name}"


def test_trained_weights_and_the_pictures_they_draw_have_one_licence():
    files = [*(ROOT / "data" / "models").rglob("*.safetensors"), *(ROOT / "data").rglob("*.png")]
    assert len(files) >= 12
    for path in files:
        assert json.loads(sidecar_of(path).read_text())["licence"] == "CC-BY-SA-4.0", path.name


def imports_of(path: Path) -> set[str]:
    """Files of the package that a file imports when it is loaded, as module names."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("splitpoint"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("splitpoint")}
    return found


def test_no_files_import_each_other_in_a_circle():
    files = {path: ".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in SOURCE.rglob("*.py")}
    arrows = {name: imports_of(path) & set(files.values()) - {name} for path, name in files.items()}
    left = dict(arrows)
    while free := [name for name, targets in left.items() if not targets & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"


def test_running_an_agent_needs_neither_torch_nor_its_trainer():
    code = (
        "import sys, numpy as np, splitpoint.learning as l; from splitpoint.offloading import sample_instance, solve; "
        "solve(sample_instance(5, 8, np.random.default_rng(0)), 'agent'); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "stable_baselines3"} & set(loaded)


def test_every_imported_package_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [*declared["dependencies"], *chain.from_iterable(declared["optional-dependencies"].values())]
    names = {re.split(r"[<>=\[]", name)[0].lower().replace("-", "_") for name in names}
    names |= {"pil": "pillow", "ipython": "ipython"}.keys() | {"resvg_py"}  # resvg_py: the rebuild says how to get it
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for module in {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names) - {"splitpoint"}:
                assert module.lower() in names, f"{path.name} imports {module}, which pyproject.toml does not declare"


def test_pins_lie_within_the_ranges_and_the_closure_holds_them():
    from packaging.requirements import Requirement

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    normal = lambda name: name.lower().replace("_", "-")
    read = lambda file: [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    pins = {normal(line.split("==")[0]): line.split("==")[1] for line in read("requirements.txt") if line}
    closure = {normal(line.split("==")[0]): line.split("==")[1] for line in read("constraints.txt") if line}
    assert pins.items() <= closure.items()
    for text in [*declared["dependencies"], *chain.from_iterable(declared["optional-dependencies"].values())]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(closure[normal(requirement.name)], prereleases=True), text


def test_checksums_hold_whatever_line_endings_git_is_told_to_write(tmp_path):
    if subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True).returncode:
        pytest.skip("not a git checkout")
    clone = ["git", "-c", "core.autocrlf=true", "clone", "-q", "--no-hardlinks", str(ROOT), str(tmp_path / "clone")]
    subprocess.run(clone, check=True, capture_output=True)
    for path in sorted((tmp_path / "clone" / "data").rglob("*.meta.json")):
        file = path.with_name(path.name.removesuffix(".meta.json"))
        if file.is_file():
            assert read_meta(file), file.name


def test_the_first_page_is_short_and_every_page_is_on_the_site():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    listed = (ROOT / "docs" / "contents.md").read_text() + (ROOT / "docs" / "solutions.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.stem == "contents" or re.search(rf"^{path.stem}$", listed, re.MULTILINE), path.name
    for text in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text.read_text()):
            assert (text.parent / link).exists(), f"{text.name} links to {link}"
