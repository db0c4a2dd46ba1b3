import subprocess
import sys

import pytest

from splitpoint import cli
from splitpoint.files import read_meta


@pytest.fixture
def users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("users.csv").write_text("user,device_step_s,alpha_s\nann,0.3,40\nbob,0.06,20\n")
    return tmp_path


def test_a_plan_from_a_file(users, capsys):
    assert cli.main(["plan", "users.csv", "--edge", "A100", "--software", "compiled", "--out", "plan.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "edge: A100, compiled; static batching, at most 18; corrected hand-over"
    assert lines[1].split()[0] == "user" and lines[2].split()[:2] == ["ann", "yes"]
    assert lines[-1].startswith("utility") and "(optimal);" in lines[-1]
    assert read_meta(users / "plan.csv")["kind"] == "simulated"


def test_a_plan_is_optimal_for_the_batching_that_was_asked_for(users, capsys):
    def utility(*typed):
        assert cli.main(["plan", "users.csv", "--batching", "early_exit", *typed]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        return float(last.split()[1]), last

    best, said = utility()
    other, warned = utility("--method", "exact")
    assert best >= other and "(optimal);" in said and "(optimal for static batching);" in warned


@pytest.mark.parametrize(
    "typed, message",
    [
        (["plan", "none.csv"], "splitpoint plan: path='none.csv' cannot be read"),
        (["plan", "users.csv", "--edge", "Abacus"], "Abacus"),
        (["plan", "users.csv", "--line", "-1", "0"], "slope_s=-1.0 is outside"),
        (["plan", "users.csv", "--software", "compiled"], "valid beside --edge"),
        (["plan", "users.csv", "--edge", "A100", "--gpus", "4"], "gpus=4 are of the released edge"),
        (["plan", "users.csv", "--method", "early_exit"], "valid beside --batching early_exit"),
        (["profile", "--out", "x.csv", "--only", "sd21"], "only='sd21' is unknown; there are: mini"),
        (["device", "--edge", "127.0.0.1:1", "--token", "x"], "edge='127.0.0.1:1' is no address; valid is one like"),
        (["load", "--edge", "nowhere", "--token", "x"], "edge='nowhere' is no address"),
        (["fly"], "splitpoint: 'fly' is unknown; there are: plan"),
        (["sweep", "../evil"], "name='../evil' is no name"),
    ],
)
def test_a_refusal_is_one_line_and_a_code(typed, message, users, capsys):
    assert cli.main(typed) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and message in said[0]


@pytest.mark.parametrize(
    "typed", [["plan", "users.csv", "--out", "users.csv/plan.csv"], ["plan", "users.csv", "--out", "."]]
)
def test_an_out_that_cannot_be_written_is_refused_before_any_work(typed, users, capsys, monkeypatch):
    monkeypatch.setattr("splitpoint.study.commands.solve", lambda *_, **__: pytest.fail("work has begun"))
    assert cli.main(typed) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and "--out=" in said.err and "cannot be written" in said.err and not said.out


def test_a_sweep_into_a_root_that_cannot_be_written_is_one_line(users, capsys, monkeypatch):
    monkeypatch.setenv("SPLITPOINT_ROOT", str(users))
    users.joinpath("results").write_text("in the way")
    monkeypatch.setattr("splitpoint.study.sweeps._windows", lambda **_: pytest.fail("work has begun"))
    assert cli.main(["sweep", "mine", "--users", "2", "--seeds", "1", "--methods", "all_local"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "cannot be written" in said[0]


def test_every_command_has_help_and_the_list_is_quick_to_load(capsys):
    code = "import sys, splitpoint.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "pandas"} & set(loaded)
    assert cli.main(["--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ("plan",)) and cli.main([]) == 2
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            cli.main([name, "--help"])
        assert f"usage: splitpoint {name}" in capsys.readouterr().out
