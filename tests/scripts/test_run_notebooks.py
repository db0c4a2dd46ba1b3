import os

import nbformat
import pytest

from scripts.run_notebooks import run_notebooks

pytestmark = pytest.mark.slow  # kernels


def write_notebook(folder, name, *sources, alone=False):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    notebook.metadata.runs_alone = alone
    notebook.cells[0].metadata.tags = ["parameters"]
    nbformat.write(notebook, folder / "notebooks" / name)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    for name in ("notebooks", "data", "src"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_runs_in_order_skips_what_is_done_and_names_the_cell_that_fails(project, capfd):
    channel = "from ipykernel.kernelapp import IPKernelApp; print(IPKernelApp.instance().transport)"
    write_notebook(project, "00_a.ipynb", 'MODE = "fast"', "print(MODE)", channel)
    write_notebook(project, "01_b.ipynb", 'MODE = "fast"', "x = 1", "raise KeyError('lost')", "x = 2")
    committed = nbformat.read(project / "notebooks" / "01_b.ipynb", as_version=4)
    for count, cell in enumerate(committed.cells, 1):
        cell.execution_count = count  # as in a committed notebook, whose last cell did run once
    nbformat.write(committed, project / "notebooks" / "01_b.ipynb")
    assert not run_notebooks([], "full")
    out, err = capfd.readouterr()
    assert "[1/2] 00_a" in out and "01_b.ipynb failed in cell 2" in err and "lost" in err
    executed = nbformat.read(project / "build" / "notebooks" / "00_a.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].text == "full\n"
    assert executed.cells[2].outputs[0].text == ("tcp\n" if os.name == "nt" else "ipc\n")
    assert nbformat.read(project / "notebooks" / "00_a.ipynb", as_version=4).cells[1].outputs == []
    write_notebook(project, "01_b.ipynb", 'MODE = "fast"')
    assert run_notebooks([], "full")
    out, _ = capfd.readouterr()
    assert "00_a: up to date" in out and "01_b:" in out


def test_a_damaged_data_file_is_noticed_although_its_sidecar_did_not_change(project, capfd):
    write_notebook(project, "00_a.ipynb", 'MODE = "fast"')
    for content, says in (("1", "00_a:"), ("1", "up to date"), ("2", " s, 0 figures")):
        (project / "data" / "table.csv").write_text(content)
        assert run_notebooks([], "fast")
        assert says in capfd.readouterr().out


def test_another_mode_or_a_missing_copy_runs_again(project, capfd):
    write_notebook(project, "00_a.ipynb", 'MODE = "fast"')
    assert run_notebooks([], "fast") and run_notebooks([], "full")
    assert "up to date" not in capfd.readouterr().out
    (project / "build" / "notebooks" / "00_a.ipynb").unlink()
    assert run_notebooks([], "full")
    assert "up to date" not in capfd.readouterr().out


def test_in_place_keeps_the_mode_that_is_committed(project):
    write_notebook(project, "00_a.ipynb", 'MODE = "fast"', "print(MODE)")
    assert run_notebooks(["00"], "full", in_place=True)
    notebook = nbformat.read(project / "notebooks" / "00_a.ipynb", as_version=4)
    assert notebook.cells[0].source == 'MODE = "fast"' and notebook.cells[1].outputs[0].text == "full\n"


def test_unknown_name_is_refused(project):
    with pytest.raises(ValueError, match="match no notebook"):
        run_notebooks(["99"], "fast")
    with pytest.raises(ValueError, match="jobs=0"):
        run_notebooks([], "fast", jobs=0)


def test_a_kernel_that_dies_is_named_at_its_own_cell(project, capfd):
    write_notebook(project, "00_a.ipynb", 'MODE = "fast"', "x = 1", "import os; os._exit(1)", "x = 2")
    assert not run_notebooks([], "fast")
    assert "failed in cell 2 ('import os; os._exit(1)')" in capfd.readouterr().err


def test_what_was_written_and_what_is_read_are_both_looked_at(project, capfd):
    write_notebook(
        project,
        "00_a.ipynb",
        'MODE = "fast"',
        "import pathlib; pathlib.Path('../figures/a.png').write_text('a picture')",
    )
    (project / "figures").mkdir()
    (project / "results").mkdir()
    assert run_notebooks([], "fast") and run_notebooks([], "fast")
    assert "up to date" in capfd.readouterr().out
    for path, content in (("figures/a.png", ""), ("build/notebooks/00_a.ipynb", "{}"), ("results/my_machine.csv", "1")):
        (project / path).write_text(content)
        assert run_notebooks([], "fast")
        assert "up to date" not in capfd.readouterr().out, path


@pytest.mark.parametrize("place", ["build", "figures"])
def test_a_root_that_cannot_be_written_is_one_error_before_any_cell_runs(place, project, capfd):
    write_notebook(project, "00_a.ipynb", 'MODE = "fast"', "raise KeyError('work has begun')")
    (project / place).write_text("in the way")
    with pytest.raises(ValueError, match=f"SPLITPOINT_ROOT=.*{place}.* cannot be written"):
        run_notebooks([], "fast")
    assert "work has begun" not in "".join(capfd.readouterr())


def test_two_run_side_by_side_and_one_that_measures_time_alone(project, capfd):
    os.mkfifo(project / "meeting")  # opening it waits for the other side: only notebooks that run at once get past
    log = "open('../log', 'a', buffering=1)"
    for name, mode in (("00_a", "w"), ("01_b", "r")):
        meets = f"open('../meeting', '{mode}').close(); open('../figures/fig{name[:2]}.png', 'w').close()"
        write_notebook(project, f"{name}.ipynb", 'MODE = "fast"', meets)
    for name, alone in (("02_c", False), ("03_d", True), ("04_e", True)):
        body = f"{log}.write('{name} begins\\n'); {log}.write('{name} ends\\n')"
        write_notebook(project, f"{name}.ipynb", 'MODE = "fast"', body, alone=alone)
    (project / "figures").mkdir()
    assert run_notebooks([], "fast", jobs=2)
    out = capfd.readouterr().out
    assert out.count("s, 1 figures") == 2 and out.count("s, 0 figures") == 3
    lines = (project / "log").read_text().splitlines()
    assert lines[:4] == [f"{name} {what}" for name in ("03_d", "04_e") for what in ("begins", "ends")]
    assert run_notebooks([], "fast", jobs=2) and capfd.readouterr().out.count("up to date") == 5


def test_after_a_failure_no_other_begins(project, capfd):
    write_notebook(project, "00_a.ipynb", 'MODE = "fast"', "raise KeyError('lost')", alone=True)
    write_notebook(project, "01_b.ipynb", 'MODE = "fast"')
    for jobs in (1, 2):
        assert not run_notebooks([], "fast", jobs=jobs)
        assert "01_b" not in capfd.readouterr().out
