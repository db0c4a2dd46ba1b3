import pytest

from splitpoint.offloading import LatencyModel, plan_rows, read_users, solve

EDGE = LatencyModel(0.002, 0.003)


def write(tmp_path, text):
    path = tmp_path / "users.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_users_of_ones_own_become_a_window_and_a_plan_a_table(tmp_path):
    path = write(tmp_path, "\ufeffuser, device_step_s, alpha_s\nann, 0.3, 40\nbob,0.05,1e-3\n")
    names, instance = read_users(path, EDGE)
    assert names == ["ann", "bob"] and instance.arrival_s.tolist() == [0, 0]
    plan = solve(instance)
    rows = plan_rows(instance, plan, names)
    assert [row["user"] for row in rows] == names
    for row in rows:
        assert row["edge_steps"] + row["device_steps"] == 200
        assert row["granted"] == (row["edge_steps"] > 0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("user,alpha_s\nann,1\n", "users.csv: column 'device_step_s' is missing"),
        ("user;device_step_s;alpha_s\nann;1;1\n", "there are 'user;device_step_s;alpha_s'"),
        ("user,device_step_s,alpha_s\n", "users.csv: no rows"),
        ("user,device_step_s,alpha_s\nann,0.1,much\n", "users.csv, line 2: alpha_s='much' is not a number"),
        ("user,device_step_s,alpha_s\nann,0.1\n", "users.csv, line 2: alpha_s=None is not a number"),
        ("user,device_step_s,alpha_s\nann,0.1,1\nann,0.1,1\n", "users.csv: user='ann' stands in two rows"),
        ("user,device_step_s,alpha_s\nann,-0.1,1\n", "device_step_s holds -0.1"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_column(tmp_path, text, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        read_users(write(tmp_path, text), EDGE)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"path='none\.csv' cannot be read"):
        read_users("none.csv", EDGE)
