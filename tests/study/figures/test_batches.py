import matplotlib
import pandas as pd
import pytest

from splitpoint.study.figures.batches import rows_over_ticks

matplotlib.use("Agg")


def test_every_row_of_every_forward_pass_is_drawn_and_the_marked_tick_is_written_out():
    cells = [(tick, request, tick - 2 * request + 1) for request in range(3) for tick in range(2 * request, 8)]
    table = pd.DataFrame(cells, columns=["tick", "request", "step"])
    figure = rows_over_ticks(table, {0: "cat", 1: "dog", 2: "owl"}, 10, 5)
    ax = figure.axes[0]
    assert len(ax.collections[0].get_offsets()) == len(table)
    texts = [text.get_text() for text in ax.texts]
    assert texts[:3] == ["6", "4", "2"] and texts[3:] == [f"leaves with {n} done" for n in (8, 6, 4)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "owl"]
    with pytest.raises(ValueError, match="marked_tick=9 has no row"):
        rows_over_ticks(table, {0: "cat"}, 10, 9)
    matplotlib.pyplot.close("all")
