"""Grading works: full marks for the source, none for the release, and each mistake costs what it should."""

import copy
import importlib.util
import re
import shutil
from itertools import pairwise

import nbformat
import pytest

from splitpoint.files import project_root

pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install -e '.[assignments]'")

from nbgrader import utils
from nbgrader.nbgraderformat import MetadataValidator, ValidationError

from tests.assignments import light
from tests.assignments.other_answers import OTHER_ANSWERS
from tests.assignments.submissions import WRONG, stub_cell, without_markers, wrong_cell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning"),
]
COURSE = project_root() / "notebooks" / "assignments"
NAMES = sorted(path.name for path in COURSE.joinpath("source").iterdir() if path.is_dir())
SEEDS = (2026, 31)
#: What the tests change in the notebooks, so that training takes seconds. In 12 800 decisions the source solution reached
#: an optimality of 0.932 … 0.980 (ten seeds), simple policies reach about 0.75.
SHORTENED = {"ps4_settings": [("DECISIONS = 150_000", "DECISIONS = 12_800"), ("DEMANDED = 0.98", "DEMANDED = 0.85")]}

_specification = importlib.util.spec_from_file_location("grade", COURSE / "grade.py")
grade = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(grade)


def source(name: str, seed: int = SEEDS[0]) -> nbformat.NotebookNode:
    """Header and assignment in one, as nbgrader joins them."""
    header = nbformat.read(COURSE / "source" / "header.ipynb", as_version=4)
    settings = next(cell for cell in header.cells if "nbgrader" in cell.metadata)
    settings.source, changes = re.subn(r"^SEED = \d+", f"SEED = {seed}", settings.source)
    assert changes == 1, "the course's seed is set in header.ipynb"
    notebook = nbformat.read(COURSE / "source" / name / f"{name}.ipynb", as_version=4)
    notebook.cells = header.cells + notebook.cells
    shorten(notebook)
    return notebook


def shorten(notebook: nbformat.NotebookNode) -> None:
    for grade_id, changes in SHORTENED.items():
        for before, after in changes if grade_id in cells_by_id(notebook) else ():
            cell = cells_by_id(notebook)[grade_id]
            assert cell.source.count(before) == 1
            cell.source = cell.source.replace(before, after)


def cells_by_id(notebook: nbformat.NotebookNode) -> dict[str, nbformat.NotebookNode]:
    return {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells if "nbgrader" in cell.metadata}


def points_of(notebook: nbformat.NotebookNode) -> dict[str, float]:
    return {
        name: cell.metadata.nbgrader.points
        for name, cell in cells_by_id(notebook).items()
        if utils.is_grade(cell) and not utils.is_solution(cell)
    }


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """A course folder of its own, released."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(COURSE / "source", folder / "source")
    shutil.copy(COURSE / "nbgrader_config.py", folder)
    for path in folder.glob("source/*/*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        shorten(notebook)
        nbformat.write(notebook, path)
    grade.release(folder)
    return folder


def released(course, name: str) -> nbformat.NotebookNode:
    return nbformat.read(course / "release" / name / f"{name}.ipynb", as_version=4)


def hand_in(course, student: str, name: str, notebook: nbformat.NotebookNode) -> None:
    path = course / "submitted" / student / name / f"{name}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)


@pytest.mark.parametrize("name", NAMES)
def test_conventions(name):
    notebook = source(name)
    ids = [cell.metadata.nbgrader.grade_id for cell in notebook.cells if "nbgrader" in cell.metadata]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(rf"({name}|course)_[a-z_]+", i) for i in ids)
    MetadataValidator().validate_nb(notebook)
    kinds = []
    for cell in notebook.cells:
        assert cell.metadata.get("nbgrader", {}).get("schema_version", 3) == 3
        assert not (cell.cell_type == "code" and re.search(r"^\s*[%!]", cell.source, re.MULTILINE)), "a magic"
        assert not cell.get("outputs")
        if cell.cell_type == "code":
            kinds.append("try" if "nbgrader" not in cell.metadata else "task" if utils.is_solution(cell) else "other")
    assert all(after == "try" for kind, after in pairwise(kinds) if kind == "task"), "a try-it cell after every task"
    graded = [cell for cell in cells_by_id(notebook).values() if utils.is_grade(cell)]
    assert sum(cell.metadata.nbgrader.points for cell in graded) == 20
    questions = [cell for cell in graded if cell.cell_type == "markdown"]
    assert len(questions) == 2 and sum("*Rubric:" in c.source for c in notebook.cells) == 2
    assert all("### BEGIN HIDDEN TESTS" in cell.source for cell in graded if cell.cell_type == "code")


@pytest.mark.parametrize("name, seed", [(name, seed) for name in NAMES for seed in SEEDS])
def test_source_solution_gets_full_marks(name, seed):
    notebook = source(name, seed)
    assert light.scores(notebook, {}) == points_of(notebook)


@pytest.mark.parametrize("name", OTHER_ANSWERS)
def test_other_right_answers_get_full_marks(name):
    notebook = source(name, SEEDS[1])
    assert set(OTHER_ANSWERS[name]) <= set(cells_by_id(notebook))
    assert light.scores(notebook, OTHER_ANSWERS[name]) == points_of(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_stubs_get_nothing(name):
    notebook = source(name)
    stubs = {
        i: stub_cell(cell.source)
        for i, cell in cells_by_id(notebook).items()
        if utils.is_solution(cell) and cell.cell_type == "code"
    }
    assert set(light.scores(notebook, stubs).values()) == {0}


@pytest.mark.parametrize("name, mistake, cell, right, wrong, lost", WRONG, ids=[f"{w[0]}-{w[1]}" for w in WRONG])
def test_wrong_submission_loses_exactly(name, mistake, cell, right, wrong, lost):
    notebook = source(name)
    answer = wrong_cell(cells_by_id(notebook)[cell].source, right, wrong)
    expected = {test: 0 if test in lost else points for test, points in points_of(notebook).items()}
    assert light.scores(notebook, {cell: answer}) == expected


@pytest.mark.parametrize("name", NAMES)
def test_release_gives_nothing_away(course, name):
    texts = "\n".join(cell.source for cell in released(course, name).cells)
    assert "SOLUTION" not in texts and "HIDDEN" not in texts
    for grade_id, cell in cells_by_id(source(name)).items():
        if utils.is_solution(cell):
            stub = cells_by_id(released(course, name))[grade_id].source
            assert ("YOUR CODE HERE" if cell.cell_type == "code" else "YOUR ANSWER HERE") in stub
        elif utils.is_grade(cell):
            hidden = cell.source.split("### BEGIN HIDDEN TESTS\n")[1].split("### END")[0].strip()
            assert hidden not in texts


def solved(course, name: str) -> nbformat.NotebookNode:
    """The release, filled in with the source solutions."""
    notebook, solutions = released(course, name), cells_by_id(source(name))
    for grade_id, cell in cells_by_id(notebook).items():
        if utils.is_solution(cell):
            cell.source = without_markers(solutions[grade_id].source)
    return notebook


@pytest.mark.parametrize("name", NAMES)
def test_untouched_release_gets_zero(course, name):
    """Test cells as in the source, solution cells as released; nbgrader itself gives open questions zero, if untouched."""
    notebook, empty = source(name), cells_by_id(released(course, name))
    stubs = {i: cell.source for i, cell in empty.items() if utils.is_solution(cell) and cell.cell_type == "code"}
    assert set(light.scores(notebook, stubs).values()) == {0}
    assert all(
        utils.determine_grade(cell)[0] == 0
        for cell in empty.values()
        if utils.is_grade(cell) and utils.is_solution(cell)
    )


def test_through_nbgrader(course, capsys):
    """Full marks for every source solution, whose cells to try things in run too; copied, deleted and changed test cells and a broken file are reported."""
    for name in NAMES:
        hand_in(course, "solver", name, solved(course, name))
    hand_in(course, "untouched", "ps2", released(course, "ps2"))
    tampered, copied = solved(course, "ps2"), solved(course, "ps2")
    places = {c.metadata.nbgrader.grade_id: i for i, c in enumerate(copied.cells) if "nbgrader" in c.metadata}
    twin = copy.deepcopy(copied.cells[places["ps2_whole_test"]])
    twin.update(id="twin", source="pass")
    copied.cells.insert(places["ps2_whole_test"] + 1, twin)
    with pytest.raises(ValidationError, match="Duplicate grade id: ps2_whole_test"):
        MetadataValidator().validate_nb(copied)
    cells_by_id(tampered)["ps2_whole"].source = "def whole_steps(*_):\n    return 0"
    cells_by_id(tampered)["ps2_savings"].source = "def step_savings(*_):\n    return 0"
    tampered.cells[places["ps2_savings_test"]].source = "pass"
    del tampered.cells[places["ps2_whole_test"]]
    hand_in(course, "copied", "ps2", copied)
    hand_in(course, "tampered", "ps2", tampered)
    course.joinpath("submitted", "broken", "ps2").mkdir(parents=True)
    course.joinpath("submitted", "broken", "ps2", "ps2.ipynb").write_text("not a notebook")

    table = grade.grade([], course)
    for name in NAMES:
        row, notebook = table["solver", name], source(name)
        unread = {i: None for i, c in cells_by_id(notebook).items() if utils.is_grade(c) and utils.is_solution(c)}
        assert row["faults"] == [] and row["cells"] == {**points_of(notebook), **unread}
        assert (row["score"], row["to_read"], row["max_score"]) == (16, 4, 20)
        assert (course / "feedback" / "solver" / name / f"{name}.html").exists()
        ran = nbformat.read(course / "autograded" / "solver" / name / f"{name}.ipynb", as_version=4)
        assert not [
            cell.source for cell in ran.cells for output in cell.get("outputs", ()) if output.output_type == "error"
        ]
    scores = {student: row["score"] for (student, _), row in table.items() if student != "solver"}
    assert scores == {"untouched": 0, "copied": 16, "tampered": 16 - 3 - 2, "broken": None}
    printed = capsys.readouterr().out
    for line in (
        "copied, ps2: nbgrader's validation: Duplicate grade id: ps2_whole_test",
        "copied, ps2: test cell ps2_whole_test is there 2 times; only the last one counts",
        "tampered, ps2: test cell ps2_whole_test is missing; it was put back",
        "tampered, ps2: locked cell ps2_savings_test was changed; the original was put back",
        "broken, ps2: not graded:",
    ):
        assert line in printed
    grade.print_table(table, course / "feedback" / "scores.csv")
    assert "not graded" in capsys.readouterr().out
    assert "tampered,ps2,ps2_whole_test,0" in (course / "feedback" / "scores.csv").read_text()


def test_cells_that_run_out_of_time_are_named(course, tmp_path, capsys):
    folder = shutil.copytree(course, tmp_path / "course", ignore=shutil.ignore_patterns("submitted", "autograded"))
    settings = folder / "nbgrader_config.py"
    shortened, changes = re.subn(r"c\.Execute\.timeout = 240\b", "c.Execute.timeout = 20", settings.read_text())
    assert changes == 1
    settings.write_text(shortened)
    notebook = solved(course, "ps2")
    cells_by_id(notebook)["ps2_savings"].source += "\n\n\nimport time\n\nwhile True:\n    time.sleep(1)"
    notebook.cells[-1:] = [nbformat.v4.new_code_cell("# my own\nwhile True:\n    time.sleep(1)"), notebook.cells[-1]]
    hand_in(folder, "slow", "ps2", notebook)

    row = grade.grade(["ps2"], folder)["slow", "ps2"]
    assert row["faults"] == [
        "cell ps2_savings was stopped after 20 s, the limit",
        f"cell number {len(notebook.cells) - 1} (# my own) was stopped after 20 s, the limit",
    ]
    assert row["score"] == 16, "what was defined before a cell was stopped is there"
    assert "slow, ps2: cell ps2_savings was stopped after 20 s" in capsys.readouterr().out


def test_scores_of_assignments_that_were_graded_before_stay(tmp_path):
    def row(**cells):
        return {"score": sum(cells.values()), "max_score": 20, "to_read": 0, "cells": cells, "faults": []}

    path = tmp_path / "feedback" / "scores.csv"
    grade.print_table({("ada", "ps3"): row(b=1, a=2), ("bob", "ps2"): row(c=3)}, path)
    grade.print_table({("ada", "ps2"): row(c=0)}, path)
    assert path.read_text().split() == ["student,assignment,cell,score", "ada,ps2,c,0", "ada,ps3,b,1", "ada,ps3,a,2"]
