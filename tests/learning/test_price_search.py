"""The search for a price: it finds what is better, one process or two, cut off or not."""

import numpy as np
import pytest

from splitpoint.edge import Poisson, System, draw_paths, learned_price, simulate
from splitpoint.edge.learned_price import PriceWeights
from splitpoint.learning.price_search import START, Population, search_price
from splitpoint.study.living_edge import released_edge

EDGE = released_edge()
GROUNDS = [(System((EDGE,)), Poisson(rate, 8.0)) for rate in (8.0, 16.0)]
FEW = dict(pairs=2, paths=1, at_once=1)


def test_a_population_is_its_members():
    (system, arrivals), paths = GROUNDS[0], draw_paths([EDGE], GROUNDS[0][1], 2, 2)
    rows = START.flat + 0.1 * np.random.default_rng(0).standard_normal((3, START.flat.size))
    price = learned_price(system, arrivals, START)
    together = simulate([EDGE], list(paths) * 3, Population(price, rows, 2))
    for number, row in enumerate(rows):
        alone = simulate([EDGE], paths, learned_price(system, arrivals, PriceWeights.of(row)))
        mine = together[together.replication // 2 == number]
        assert mine.granted_steps.tolist() == alone.granted_steps.tolist()


@pytest.mark.slow
def test_a_bad_start_gets_better():
    generous = PriceWeights.of(START.flat * 0.2)
    found = search_price(GROUNDS[1:], iterations=20, start=generous, pairs=6, paths=2, at_once=1, rate=0.5)
    paths = draw_paths([EDGE], GROUNDS[1][1], 77, 6)
    before, after = (simulate([EDGE], paths, learned_price(*GROUNDS[1], w)).gain_s.sum() for w in (generous, found))
    assert after > 1.02 * before


@pytest.mark.slow
def test_a_search_that_was_cut_off_goes_on_to_the_same_weights(tmp_path):
    whole = search_price(GROUNDS, iterations=22, **FEW)

    class Cut(Exception):
        pass

    def cut(number, weights):
        raise Cut

    with pytest.raises(Cut):
        search_price(GROUNDS, iterations=22, folder=tmp_path, after=cut, **FEW)
    seen = []
    again = search_price(GROUNDS, iterations=22, folder=tmp_path, jobs=2, after=lambda n, w: seen.append(n), **FEW)
    assert seen == [22] and again.flat == pytest.approx(whole.flat, abs=1e-12)
    with pytest.raises(ValueError, match="holds another training"):
        search_price(GROUNDS, iterations=22, folder=tmp_path, seed=1, **FEW)


@pytest.mark.parametrize("wrong", [dict(iterations=0), dict(pairs=1.5), dict(rate=0.0), dict(seed=-1), dict(start=3)])
def test_numbers_outside_their_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        search_price(GROUNDS, **wrong)
