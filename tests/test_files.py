import json

import pytest

from splitpoint.files import can_write, meta_path, read_meta, write_atomically, write_meta, write_rows


def test_sidecar_round_trip_and_damage(tmp_path):
    path = tmp_path / "table.csv"
    write_atomically(path, b"a\n1\n")
    written = write_meta(path, kind="measured", command="make it", seed=3, settings={"n": 1}, licence="MIT")
    assert read_meta(path) == written
    assert {"kind", "command", "seed", "date_utc", "device", "versions", "sha256", "licence"} <= set(written)
    path.write_bytes(b"a\n2\n")
    with pytest.raises(ValueError, match="table.csv does not match the checksum.*make it"):
        read_meta(path)
    meta_path(path).write_text("{")
    with pytest.raises(ValueError, match="missing or unreadable"):
        read_meta(path)
    path.unlink()
    write_atomically(meta_path(path), json.dumps(written).encode())
    with pytest.raises(ValueError, match="^table.csv is missing or unreadable"):
        read_meta(path)


def test_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="kind='guessed' is not one of measured"):
        write_meta(tmp_path / "x", kind="guessed", command="")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_rows_become_csv(tmp_path):
    path = tmp_path / "table.csv"
    write_rows(path, ({"a": n, "b": "x, y"} for n in range(2)))
    assert path.read_text() == 'a,b\n0,"x, y"\n1,"x, y"\n'
    write_rows(path, [{"a": 1, "b": 2, "c": 3}], columns=["c", "a"])
    assert path.read_text() == "c,a\n3,1\n"
    write_rows(path, [], columns=["a"])
    assert path.read_text() == "a\n"
    with pytest.raises(ValueError, match="rows of table.csv are empty"):
        write_rows(path, [])
    with pytest.raises(ValueError, match="not in fieldnames"):
        write_rows(path, [{"a": 1}, {"z": 2}])
    assert path.read_text() == "a\n"


def test_no_host_names_in_sidecars(tmp_path):
    import socket

    path = tmp_path / "x"
    path.write_bytes(b"")
    assert socket.gethostname() not in json.dumps(write_meta(path, kind="simulated", command="c"))


def test_threads_that_write_one_file_do_not_take_each_others_draft(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path, contents = tmp_path / "table.csv", [bytes([65 + i]) * 1000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_atomically(path, contents[i % 8]), range(400)))
    assert path.read_bytes() in contents and [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_whether_a_file_can_be_written_is_asked_without_leaving_a_trace(tmp_path):
    assert can_write("out", tmp_path / "new" / "x.csv") == tmp_path / "new" / "x.csv"
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "x.csv").write_text("old")
    can_write("out", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "old"
    for path in (tmp_path, tmp_path / "x.csv" / "below", "a" * 400):
        with pytest.raises(ValueError, match="out=.* cannot be written"):
            can_write("out", path)


def test_an_installation_without_data_says_where_to_get_it(tmp_path, monkeypatch):
    from splitpoint.diffusion import load_mini
    from splitpoint.offloading.problem import published_latency

    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    published_latency.cache_clear()
    with pytest.raises(
        ValueError, match="came without the project's data: let the environment variable SPLITPOINT_ROOT"
    ):
        published_latency()
    with pytest.raises(ValueError, match="came without the project's data"):
        load_mini()
