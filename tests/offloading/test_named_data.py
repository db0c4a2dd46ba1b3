"""The published step times of machines with names: every derived number again, and what the selection promises."""

import csv
import importlib.util
import re
from collections import defaultdict
from itertools import pairwise

import pytest

from splitpoint.files import data_path, project_root, read_meta

PATH = data_path("latency_profiles", "named.csv")
LICENCES = {"Apache-2.0", "MIT", "BSD-3-Clause"}
GPUS = {"edge_gpu", "consumer_gpu"}


def read():
    with PATH.open(newline="") as file:
        return list(csv.DictReader(file))


ROWS = read()


def by_series(rows):
    found = defaultdict(list)
    for row in rows:
        names = ("device", "architecture", "resolution_px", "dtype", "software_detail", "scope", "num_steps", "source")
        found[tuple(row[name] for name in names)].append(row)
    return found


def seconds_again(row):
    """What the unit says, not what the script says: rates are inverted, calls counted, whole runs divided by steps."""
    value, unit = float(row["published_value"]), row["published_unit"]
    if re.fullmatch(r"it(er)?/s", unit):
        return 1 / value
    value *= 1e-3 if unit.startswith("ms") else 1
    calls = 2 if "latent 1x4x64x64" in unit or "single UNet call" in unit else 1
    runs = "pipeline call" in unit or "per image" in unit
    return calls * value / (int(row["num_steps"]) if runs else 1)


def test_every_derived_number_follows_from_the_published_one():
    for row in ROWS:
        assert float(row["step_s"]) == pytest.approx(seconds_again(row), rel=1e-12), row


def test_scope_agrees_with_the_unit():
    """A whole run holds the text encoder and the decoder; a rate of steps or a call of the network does not."""
    for row in ROWS:
        whole = "pipeline call" in row["published_unit"] or "per image" in row["published_unit"]
        assert (row["scope"] == "end_to_end") == whole, row
        assert not whole or row["num_steps"], row


def test_every_row_says_where_it_stands():
    assert read_meta(PATH)["kind"] == "published"
    for row in ROWS:
        assert row["licence"] in LICENCES and re.match(r"[0-9a-f]{8,} ", row["source_version"] + " "), row
        assert "/" in row["source"] and row["guidance"] == "True", row


def test_a_series_holds_each_batch_size_once_and_rises():
    for key, rows in by_series(ROWS).items():
        sizes = [int(row["batch_size"]) for row in rows]
        seconds = [float(row["step_s"]) for row in rows]
        assert sizes == sorted(set(sizes)) and seconds == sorted(seconds), key


def test_no_image_gets_dearer_by_more_than_a_seventh_in_a_larger_batch():
    for key, rows in by_series(ROWS).items():
        each = [float(row["step_s"]) / int(row["batch_size"]) for row in rows]
        assert all(after < 8 / 7 * before for before, after in pairwise(each)), key


def test_enough_edges_and_devices():
    edges = {k[0] for k, rows in by_series(ROWS).items() if rows[0]["device_type"] in GPUS and len(rows) >= 3}
    clean = {r["device"] for r in ROWS if r["device_type"] not in GPUS and r["scope"] != "end_to_end"}
    assert len(edges) >= 20 and len(clean) >= 15
    assert all(len(rows) >= 3 for rows in by_series(ROWS).values() if rows[0]["device_type"] in GPUS)


@pytest.fixture(scope="module")
def script():
    path = project_root() / "scripts" / "select_named_hardware.py"
    spec = importlib.util.spec_from_file_location("select_named_hardware", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def collected(**changes):
    row = dict(hardware="NVIDIA T4", hardware_kind="edge_gpu", model="sd-1.5", resolution_px="512x512", dtype="fp16",
               software="torch 2.0 eager (SDPA)", batch_size="1", num_steps="50", published_value="5",
               published_unit="s per pipeline call", step_s="0.1", scope="end_to_end", quality="end_to_end",
               unet_evaluations_per_image_step="2", source="somebody/lambda", source_commit_or_date="0123456789",
               source_licence="MIT (of the repository)")  # fmt: skip
    return row | changes


def test_a_series_is_kept_with_its_published_numbers(script):
    rows = [collected(batch_size=str(b), published_value=str(5 * b), step_s=str(0.1 * b)) for b in (1, 2, 4, 32)]
    kept, left_out = script.select(rows)
    assert [row["batch_size"] for row in kept] == ["1", "2", "4"] and left_out == {"batch above 16": 1}
    assert kept[0]["step_s"] == 0.1 and kept[0]["licence"] == "MIT" and kept[0]["software"] == "eager"


@pytest.mark.parametrize("changes", [
    {"quality": "ambiguous"}, {"quality": "approx"}, {"unet_evaluations_per_image_step": "unstated"},
    {"resolution_px": "256x256"}, {"dtype": "unstated"}, {"hardware": "NVIDIA RTX A6000", "software": "no xformers"},
])  # fmt: skip
def test_what_is_not_certain_is_left_out(script, changes):
    kept, left_out = script.select([collected(batch_size=str(b), **changes) for b in (1, 2, 4)])
    assert kept == [] and sum(left_out.values()) == 3


def test_two_sizes_are_enough_for_a_phone_and_not_for_an_edge(script):
    rows = [collected(batch_size=b, published_value="5", step_s="0.1") for b in ("1", "2")]
    assert script.select(rows)[0] == []
    assert len(script.select([row | {"hardware_kind": "phone"} for row in rows])[0]) == 2


def test_a_derived_number_that_does_not_follow_is_refused(script):
    with pytest.raises(ValueError, match=r"step_s=0.2 of NVIDIA T4 is 0.1 by its unit"):
        script.tidy(collected(step_s="0.2"))
    with pytest.raises(ValueError, match="unit='furlongs' is not known"):
        script.step_seconds(1.0, "furlongs", "")
