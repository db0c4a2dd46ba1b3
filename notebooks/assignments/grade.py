"""Hand out and grade: ``grade.py release`` writes release/, ``grade.py grade [ps2 …]`` grades submitted/.

Submissions lie in ``submitted/<student>/<assignment>/<assignment>.ipynb``. Grading runs nbgrader's autograder, writes
feedback as HTML into ``feedback/``, prints what is wrong with a file's cells and which ran out of time, and a table of
scores. Every cell's points go into ``feedback/scores.csv``, beside those of assignments that were graded before.
"""

import argparse
import csv
import logging
import os
import sys
import warnings
from collections import Counter
from pathlib import Path

import nbformat
from nbgrader import utils
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from nbgrader.converters import Autograde
from nbgrader.nbgraderformat import MetadataValidator, ValidationError
from nbgrader.preprocessors import DeduplicateIds
from sqlalchemy.exc import SAWarning
from traitlets.config import PyFileConfigLoader

COURSE = Path(__file__).resolve().parent


class UnmarkCopies(DeduplicateIds):
    """As nbgrader's own, which leaves empty metadata on a copied cell and then refuses the notebook for it."""

    def preprocess_cell(self, cell, resources, cell_index):
        cell, resources = super().preprocess_cell(cell, resources, cell_index)
        if cell.metadata.get("nbgrader") == {}:
            del cell.metadata["nbgrader"]
        return cell, resources


def assignments(course: Path = COURSE) -> list[str]:
    """Names of the assignments in ``source/``."""
    return sorted(folder.name for folder in course.joinpath("source").iterdir() if folder.is_dir())


def open_course(course: Path = COURSE) -> NbGraderAPI:
    """nbgrader's interface with this course's settings."""
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    )  # it calls alembic
    config = PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config()
    config.Autograde.sanitize_preprocessors = [
        UnmarkCopies if kind is DeduplicateIds else kind for kind in Autograde().sanitize_preprocessors
    ]
    return NbGraderAPI(config=config)


def release(course: Path = COURSE) -> None:
    """Write the students' notebooks: solutions and hidden tests removed, test cells locked.

    Raises:
        RuntimeError: with nbgrader's log, if an assignment cannot be made.
    """
    api = open_course(course)
    for name in assignments(course):
        _or_raise(name, api.generate_assignment(name, force=True, create=True))
        print(f"release/{name}/{name}.ipynb")


def cell_faults(released: nbformat.NotebookNode, submitted: nbformat.NotebookNode) -> list[str]:
    """What was done to a submission's cells: copied, deleted or changed ones, in words."""
    faults = []
    ids = Counter(cell.metadata.nbgrader.grade_id for cell in submitted.cells if _has_id(cell))
    try:
        MetadataValidator().validate_nb(submitted)
    except ValidationError as error:
        faults.append(f"nbgrader's validation: {error}")
    for cell in filter(_has_id, released.cells):
        grade_id = cell.metadata.nbgrader.grade_id
        kind = "test cell" if utils.is_grade(cell) and not utils.is_solution(cell) else "cell"
        if ids[grade_id] == 0:
            faults.append(f"{kind} {grade_id} is missing" + ("; it was put back" if utils.is_grade(cell) else ""))
        elif ids[grade_id] > 1:
            faults.append(f"{kind} {grade_id} is there {ids[grade_id]} times; only the last one counts")
    for cell in filter(_has_id, submitted.cells):
        if utils.is_locked(cell) and utils.compute_checksum(cell) != cell.metadata.nbgrader.get("checksum"):
            faults.append(f"locked cell {cell.metadata.nbgrader.grade_id} was changed; the original was put back")
    return faults


def stopped_cells(graded: nbformat.NotebookNode, limit_s: float) -> list[str]:
    """Cells of a graded notebook that ran into the limit of time, in words; those without a name by place and first line."""
    faults = []
    for number, cell in enumerate(graded.cells, 1):
        if any(output.get("ename") == "CellTimeoutError" for output in cell.get("outputs", ())):
            place = f"number {number} ({cell.source.strip().split(chr(10))[0]})"
            name = cell.metadata.nbgrader.grade_id if _has_id(cell) else place
            faults.append(f"cell {name} was stopped after {limit_s:g} s, the limit")
    return faults


def grade(names: list[str], course: Path = COURSE) -> dict[tuple[str, str], dict]:
    """Grade all submissions of the given assignments and write their feedback.

    Args:
        names: assignments, all that were submitted if empty.
        course: folder with ``source/``, ``release/`` and ``submitted/``.

    Returns:
        For each (student, assignment): ``score``, ``max_score``, ``to_read`` (points of open questions that somebody
        still has to read), ``cells`` (grade id to score, None where unread) and ``faults`` (see cell_faults and
        stopped_cells).
    """
    api, table = open_course(course), {}
    for path in sorted(course.glob("submitted/*/*/*.ipynb")):
        student, name = path.parts[-3], path.parts[-2]
        if path.stem != name or (names and name not in names):
            continue
        released = nbformat.read(course / "release" / name / f"{name}.ipynb", as_version=4)
        try:
            faults = cell_faults(released, nbformat.read(path, as_version=4))
            _or_raise(name, api.autograde(name, student, force=True, create=True))
            _or_raise(name, api.generate_feedback(name, student, force=True))
        except Exception as error:  # one unreadable file must not stop the others
            faults, row = [f"not graded: {str(error).strip().splitlines()[-1]}"], {"score": None, "cells": {}}
        else:
            row = _scores(api.coursedir.db_url, student, name)
            graded = nbformat.read(course / "autograded" / student / name / f"{name}.ipynb", as_version=4)
            faults += stopped_cells(graded, api.config.Execute.timeout)
        table[student, name] = {**row, "faults": faults}
        for fault in faults:
            print(f"{student}, {name}: {fault}")
    return table


def print_table(table: dict[tuple[str, str], dict], path: Path) -> None:
    """Print the scores and write every cell's points as CSV; the file's rows of other assignments stay."""
    path.parent.mkdir(exist_ok=True)
    graded = {name for _, name in table}
    rows = [row for row in _read_rows(path) if row[1] not in graded]
    for (student, name), row in table.items():
        rows += [[student, name, cell, score] for cell, score in row["cells"].items()]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["student", "assignment", "cell", "score"])
        writer.writerows(sorted(rows, key=lambda row: row[:2]))  # stable: cells in the order of the notebook
    print(f"\n{'student':<20}{'assignment':<12}{'score':>8}{'of':>6}{'still to read':>16}")
    for (student, name), row in table.items():
        if row["score"] is None:
            print(f"{student:<20}{name:<12}{'not graded':>14}")
        else:
            print(f"{student:<20}{name:<12}{row['score']:>8g}{row['max_score']:>6g}{row['to_read']:>16g}")


def _read_rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if len(row) == 4][1:]


def _scores(db_url: str, student: str, name: str) -> dict:
    with Gradebook(db_url) as book:
        grades = book.find_submission_notebook(name, name, student).grades
        cells = {g.cell.name: None if g.needs_manual_grade and g.manual_score is None else g.score for g in grades}
        return {
            "score": sum(score or 0 for score in cells.values()),
            "max_score": sum(g.max_score for g in grades),
            "to_read": sum(g.max_score for g in grades if cells[g.cell.name] is None),
            "cells": cells,
        }


def _has_id(cell) -> bool:
    return utils.is_grade(cell) or utils.is_solution(cell) or utils.is_locked(cell)


def _or_raise(name: str, result: dict) -> None:
    if not result["success"]:
        raise RuntimeError(f"nbgrader could not process {name}:\n{result.get('error') or ''}{result.get('log') or ''}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Hand out and grade the assignments.")
    parser.add_argument("what", choices=("release", "grade"))
    parser.add_argument("names", nargs="*", help="assignments to grade, for instance ps2; all if left out")
    arguments = parser.parse_args()
    os.chdir(COURSE)
    warnings.simplefilter("ignore", SAWarning)  # of nbgrader's own sessions
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    if arguments.what == "release" or not COURSE.joinpath("release").is_dir():
        release()
    if arguments.what == "grade":
        table = grade(arguments.names)
        if not table:
            sys.exit("nothing to grade: submissions belong into submitted/<student>/<assignment>/<assignment>.ipynb")
        print_table(table, COURSE / "feedback" / "scores.csv")


if __name__ == "__main__":
    main()
