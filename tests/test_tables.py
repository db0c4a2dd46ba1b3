import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from splitpoint import tables
from splitpoint.files import write_atomically, write_meta
from splitpoint.tables import load_or_run, read_table, results_path


def square(number, fail_at=None, log=None):
    if number == fail_at:
        raise KeyboardInterrupt
    if log:
        with open(log, "a") as file:
            file.write(f"{number}\n")
    return [{"number": number, "square": number**2 + 0.1}]


def tasks(**more):
    return [dict(number=n, **more) for n in range(6)]


def test_computed_once_then_read(scratch_project, capsys):
    first = load_or_run("squares", square, tasks(), settings={"n": 6})
    assert "computed here" in capsys.readouterr().out
    again = load_or_run("squares", square, tasks(), settings={"n": 6})
    assert "read from results/squares.csv; simulated" in capsys.readouterr().out
    pd.testing.assert_frame_equal(first, again)
    assert first["square"].tolist() == [n**2 + 0.1 for n in range(6)]


def test_other_settings_are_computed_anew(scratch_project, capsys):
    load_or_run("squares", square, tasks(), settings={"n": 6})
    load_or_run("squares", square, tasks()[:3], settings={"n": 3})
    assert capsys.readouterr().out.count("computed here") == 2
    assert len(pd.read_csv(results_path("squares.csv"))) == 3


def test_an_interrupted_run_continues_to_the_same_table(scratch_project, capsys):
    import joblib

    log = scratch_project / "log"
    whole = load_or_run("whole", square, tasks(), settings={})
    with joblib.parallel_config(backend="sequential"), pytest.raises(KeyboardInterrupt):
        load_or_run("squares", square, tasks(fail_at=4, log=str(log)), settings={})
    assert not results_path("squares.csv").exists()
    resumed = load_or_run("squares", square, tasks(log=str(log)), settings={})
    pd.testing.assert_frame_equal(whole, resumed)
    assert sorted(log.read_text().split()) == list("012345"), "a finished task was run again"
    assert "4 parts of 6 from before" in capsys.readouterr().out


def test_an_unknown_kind_is_refused_before_any_work(scratch_project):
    with pytest.raises(ValueError, match="kind='guessed' is unknown; there are: measured"):
        load_or_run("squares", square, tasks(), settings={}, kind="guessed")
    assert not scratch_project.joinpath("results").exists()


def test_a_table_goes_stale_when_the_code_of_its_rooms_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "__file__", str(tmp_path / "tables.py"))
    for room in ("study", "learning"):
        tmp_path.joinpath(room).mkdir()
        tmp_path.joinpath(room, "code.py").write_text("x = 1\n")
    before = tables.code_digest("study")
    tmp_path.joinpath("learning", "code.py").write_text("x = 2\n")
    assert tables.code_digest("study") == before
    tmp_path.joinpath("study", "code.py").write_text("x = 2\n")
    assert tables.code_digest("study") != before


def test_a_table_that_was_cut_off_or_changed_is_made_again(scratch_project, capsys):
    first = load_or_run("squares", square, tasks(), settings={})
    results_path("squares.csv").write_text("number,square\n0,9\n")
    pd.testing.assert_frame_equal(load_or_run("squares", square, tasks(), settings={}), first)
    for damage in (b"[1]", b"\xff\xfe", b"[" * 100_000, b""):
        results_path("squares.csv.meta.json").write_bytes(damage)
        pd.testing.assert_frame_equal(load_or_run("squares", square, tasks(), settings={}), first)
    assert capsys.readouterr().out.count("computed here") == 6


def test_a_shipped_table_that_was_changed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    path = tmp_path / "data" / "results" / "squares.csv"
    write_atomically(path, b"number\n1\n")
    write_meta(path, kind="simulated", command="c", settings={})
    path.write_text("number\n2\n")
    with pytest.raises(ValueError, match=r"squares\.csv does not match the checksum.*git checkout"):
        load_or_run("squares", square, tasks(), settings={})


@pytest.mark.parametrize("damage", [lambda text: text[:-3], lambda text: text.replace("16.1", "17.1"), lambda _: ""])
def test_a_part_that_was_cut_or_changed_is_computed_again(damage, scratch_project):
    import joblib

    with joblib.parallel_config(backend="sequential"), pytest.raises(KeyboardInterrupt):
        load_or_run("squares", square, tasks(fail_at=5), settings={})
    (part,) = results_path("squares.parts").rglob("4.json")
    part.write_text(damage(part.read_text()))
    log = scratch_project / "log"
    table = load_or_run("squares", square, tasks(log=str(log)), settings={})
    assert table["square"].tolist() == [n**2 + 0.1 for n in range(6)]
    assert sorted(log.read_text().split()) == ["4", "5"]


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/b", "", "..", "a\n", "a..b", None, 3])
def test_a_name_leads_nowhere_else(name, scratch_project):
    with pytest.raises(ValueError, match="name="):
        load_or_run(name, square, tasks(), settings={})
    assert not scratch_project.joinpath("results").exists()


def no_rows(number):
    return []


def test_a_table_without_rows_is_not_kept(scratch_project):
    with pytest.raises(ValueError, match="tasks of nothing gave no rows"):
        load_or_run("nothing", no_rows, tasks(), settings={})
    assert not results_path("nothing.csv").exists()


PROGRAM = """
import sys
from tests.test_tables import square, tasks
from splitpoint.tables import load_or_run
print(len(load_or_run("squares", square, tasks(log=sys.argv[1]), settings={})))
"""


def test_two_processes_make_one_table(scratch_project):
    log = scratch_project / "log"
    environment = os.environ | {"SPLITPOINT_ROOT": str(scratch_project), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, str(log)]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(log.read_text().split()) == list("012345"), "the second computed what the first had"
    assert sum("computed here" in text for text in said) == 1 and sum("read from" in text for text in said) == 1
    assert not results_path("squares.parts").exists()


def test_dask_runs_the_same_sweep(scratch_project):
    distributed = pytest.importorskip("distributed", reason="the optional extra `cluster` is not installed")
    import joblib

    with distributed.Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None):
        with joblib.parallel_config(backend="dask"):
            table = load_or_run("squares", square, tasks(), settings={})
    assert table["number"].tolist() == list(range(6))


def test_read_table_prints_where_the_numbers_come_from(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    path = tmp_path / "data" / "t.csv"
    write_atomically(path, b"a\n1\n")
    write_meta(path, kind="measured", command="measure it", device="an abacus")
    assert read_table("t.csv")["a"].tolist() == [1]
    line = capsys.readouterr().out
    assert "data/t.csv: measured" in line and "an abacus" in line and "measure it" in line
    with pytest.raises(ValueError, match="data/none.csv is missing"):
        read_table("none.csv")
    assert json.loads((tmp_path / "data" / "t.csv.meta.json").read_text())["kind"] == "measured"


def test_a_root_that_cannot_be_written_is_one_error_before_any_work(scratch_project):
    log = scratch_project / "log"
    scratch_project.joinpath("results").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"results='.*squares\.csv' cannot be written"):
        load_or_run("squares", square, tasks(log=str(log)), settings={})
    assert not log.exists()
