"""nbgrader's settings for this course; used by grade.py and by nbgrader's own commands when run in this folder."""

from pathlib import Path

c = get_config()

c.CourseDirectory.course_id = "splitpoint"
c.CourseDirectory.root = str(Path(__file__).resolve().parent)
c.IncludeHeaderFooter.header = str(
    Path(__file__).resolve().parent / "source" / "header.ipynb"
)  # holds the course's SEED
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
c.Execute.timeout = 240  # seconds for one cell, of which the longest (training in ps4) needs less than half
c.Execute.kernel_name = "python3"
c.Execute.extra_arguments = ["--HistoryManager.hist_file=:memory:", "--log-level=ERROR"]
c.OverwriteCells.add_missing_cells = True  # a test cell that was deleted is put back, and runs
