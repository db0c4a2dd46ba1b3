import matplotlib.pyplot as plt
import numpy as np
import pytest

from splitpoint.files import write_meta
from splitpoint.offloading import LatencyModel
from splitpoint.offloading.curves import TwoPieceLatency
from splitpoint.offloading.hardware import Curve
from splitpoint.study.figures import latency as latency_figures
from splitpoint.study.latency import (
    curve_name,
    fit_line,
    line_table,
    loss_of_the_line,
    measured_curves,
    share_of_matrix_rate,
)
from splitpoint.tables import results_path

SIZES = np.array([1.0, 2, 4, 8, 12, 16, 18, 24])


def curve_of(model):
    return Curve(SIZES, model.step_latency_s(SIZES))


def test_nothing_is_lost_where_the_line_is_true():
    table = loss_of_the_line(curve_of(LatencyModel(0.02, 0.03)), seeds=range(20))
    assert np.allclose(table.lost_s, 0, atol=1e-9)
    assert (table.granted_line == table.granted_bent).all()


def test_something_is_lost_where_it_bends_and_never_gained():
    table = loss_of_the_line(curve_of(TwoPieceLatency(4, 0.10, 0.001, 0.05)), seeds=range(40))
    assert (table.lost_s >= -1e-9).all() and table.lost_s.max() > 1e-3
    assert table.share_lost.between(-1e-9, 1).all()


def test_line_is_fitted_inside_the_batch_limit_only():
    bent = TwoPieceLatency(18, 0.38, 0.02, 5.0)
    line = fit_line(curve_of(bent))
    assert (line.slope_s, line.intercept_s) == pytest.approx((0.02, 0.02))


@pytest.fixture
def my_machine(scratch_project):
    path = results_path("my_machine.csv")
    path.parent.mkdir()
    line = LatencyModel(0.002, 0.003)
    rows = [
        f"my box,mini,fp32,eager,False,{b:g},{r},ok,{line.step_latency_s(b)},{1e6 * b:g},1e9"
        for b in SIZES
        for r in range(3)
    ]
    columns = (
        "device,architecture,dtype,mode,guidance,batch_size,repeat,status,step_s,model_flop,matrix_rate_flop_per_s"
    )
    path.write_text("\n".join([columns, *rows]))
    write_meta(path, kind="measured", command="make profile", device="my box")


def test_a_machine_of_ones_own_joins_the_tables(my_machine, capsys):
    assert any(key[0] == "my box" for key in measured_curves())
    assert "results/my_machine.csv: measured" in capsys.readouterr().out
    row = line_table().set_index("curve").loc["my box, fp32, eager"]
    assert row["k (ms)"] == pytest.approx(2) and row["h (ms)"] == pytest.approx(3)
    assert row["error, beyond"] == pytest.approx(0, abs=1e-9)
    share = share_of_matrix_rate().loc[("my box, fp32, eager", "mini", False)]
    assert share[[1, 8]].tolist() == pytest.approx([1e6 / 0.005 / 1e9, 8e6 / 0.019 / 1e9])


def test_a_rate_that_was_timed_once_gives_no_shares(my_machine):
    path = results_path("my_machine.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, *(line.replace("eager", "channels_last") for line in lines[1:])]))
    write_meta(path, kind="measured", command="make profile", device="my box")
    assert not any("my box" in curve for curve, *_ in share_of_matrix_rate().index)


def test_figures_draw_medians_and_errors():
    curves = {"a": curve_of(LatencyModel(0.02, 0.03)), "b": curve_of(TwoPieceLatency(18, 0.38, 0.02, 0.04))}
    ax = latency_figures.latency_curves(curves)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 1e3 * curves["a"].seconds)
    ax = latency_figures.line_residuals(curves)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 0, atol=1e-9)
    assert ax.lines[1].get_ydata()[-1] == pytest.approx(100 * (0.50 / 0.62 - 1))
    assert "bend at 18" in [t.get_text() for t in latency_figures.bent_line(curves["b"]).get_legend().get_texts()][-1]
    plt.close("all")


@pytest.mark.parametrize(
    "device, name",
    [
        ("AMD EPYC, 2 cores", "AMD EPYC"),
        ("Intel(R) Xeon(R) Processor, 2 cores", "Intel Xeon"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz, 8 cores", "Intel Core i7-8550U"),
    ],
)
def test_a_curve_has_a_short_name(device, name):
    assert curve_name((device, "mini", "fp32", "eager", "True")) == f"{name}, fp32, eager"
