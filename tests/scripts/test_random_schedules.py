import pandas as pd
import pytest

from scripts.random_schedules import deviations, random_requests, run_together
from splitpoint.diffusion.families import family_of
from splitpoint.diffusion.mini import load_mini
from splitpoint.files import data_path, read_meta


@pytest.fixture(scope="module")
def family():
    return family_of(load_mini())


@pytest.mark.parametrize("seed", [3, 17])
def test_on_the_miniature_every_row_is_what_it_would_have_been_alone(family, seed):
    rows = deviations(family, seed)
    assert rows and max(row["largest_batch"] for row in rows) > 1
    assert max(row["latent_deviation"] for row in rows) <= 1e-5 and max(row["grey_levels"] for row in rows) <= 1


def test_cancelled_requests_have_no_packet(family):
    schedule = [(0, -1, random_requests(0)[0][2]), (1, 1, random_requests(1)[0][2])]
    packets, sizes = run_together(family, schedule)
    assert packets[1] is None and packets[0] is not None and sizes[:3] == [1, 2, 1]


def test_the_stored_table_of_fifty_schedules_holds_the_promise():
    path = data_path("quality", "random_schedules.csv")
    table, meta = pd.read_csv(path), read_meta(path)
    assert table.schedule.nunique() == meta["settings"]["schedules"] == 50 and set(table.scheduler) == {
        "ddim",
        "euler",
        "dpmsolver++",
    }
    assert table.latent_deviation.max() <= 1e-5 and table.grey_levels.max() <= 1
