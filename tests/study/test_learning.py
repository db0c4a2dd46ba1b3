import csv

import numpy as np
import pytest

from splitpoint.files import data_path, read_meta
from splitpoint.learning import evaluate_agent, load_agent
from splitpoint.study.learning import ABLATION, AGENTS, CURVES, OUTSIDE, held_out, summary


def rows(name):
    path = data_path("learning", f"{name}.csv")
    read_meta(path)
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", AGENTS)
def test_shipped_agents_are_what_the_command_trains(name):
    assert load_agent(name).settings == AGENTS[name]


def test_tables_hold_every_variant_and_setting():
    assert {row["variant"] for row in rows("ablation")} == set(ABLATION)
    assert {row["setting"] for row in rows("curves")} == set(CURVES)
    assert {row["setting"] for row in rows("outside")} == set(OUTSIDE)


def test_the_optimality_table_is_that_of_the_shipped_agents():
    windows = held_out()
    for name in AGENTS:
        share = [float(row["optimality"]) for row in rows("optimality") if row["method"] == f"agent ({name})"]
        assert share == pytest.approx(evaluate_agent(load_agent(name), windows)["optimality"], abs=2e-6)


def test_summary_gives_mean_percentile_and_minimum():
    assert summary(np.arange(101) / 100) == {"mean": 0.5, "p1": 0.01, "min": 0.0}
