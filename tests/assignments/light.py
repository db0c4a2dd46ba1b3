"""Graded cells run in this process, scored by nbgrader's own rule: what the many wrong submissions are tested with.

Cells that carry no grade_id (those to try things in) are left out: no graded cell may depend on them.
"""

import contextlib
import copy
import io
import warnings

import nbformat
from nbformat.v4 import new_output
from nbgrader import utils


def scores(notebook: nbformat.NotebookNode, answers: dict[str, str]) -> dict[str, float]:
    """Points of each test cell when the named solution cells are replaced by these answers."""
    notebook, names, found = copy.deepcopy(notebook), {"__name__": "__main__"}, {}
    with warnings.catch_warnings():
        for cell in notebook.cells:
            if cell.cell_type != "code" or "nbgrader" not in cell.metadata:
                continue
            grade_id = cell.metadata.nbgrader.grade_id
            cell.source = answers.get(grade_id, cell.source)
            cell.outputs = _run(cell.source, grade_id, names)
            if utils.is_grade(cell):
                found[grade_id], _ = utils.determine_grade(cell)
    return found


def _run(source: str, name: str, names: dict) -> list:
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(complaints):
            exec(compile(source, name, "exec"), names)
    except Exception as error:
        return [new_output("error", ename=type(error).__name__, evalue=str(error), traceback=[])]
    return [new_output("stream", name="stderr", text=complaints.getvalue())] if complaints.getvalue() else []
