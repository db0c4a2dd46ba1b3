"""The learned price: closed form where nothing is learned, the same for many as for one, and no other unit of time."""

from dataclasses import replace

import numpy as np
import pytest

from splitpoint.edge import Edge, Poisson, System, draw_paths, make_policy, simulate, static_price
from splitpoint.edge.learned_price import (
    CONTEXT,
    ENTERING,
    LOADS,
    PriceWeights,
    learned_price,
    load_weights,
    save_weights,
)
from splitpoint.edge.policies import marginal_step_s
from splitpoint.offloading import LatencyModel
from splitpoint.study.living_edge import released_edge

LONG, SHORT = len(LOADS) + len(CONTEXT), len(CONTEXT) + len(ENTERING)
NOTHING = PriceWeights(np.zeros(LONG), np.zeros(LONG), np.zeros(SHORT), np.zeros(2))
EDGE = released_edge()
SYSTEM = System((EDGE,))


def at_loads(value):
    return np.append(np.full(len(LOADS), value), np.zeros(len(CONTEXT)))


def prices_seen(policy, arrivals, seed=0):
    """Price and fee at every decision of one path."""
    seen = []

    def ask(observation):
        seen.append([observation, *policy.price_and_fee(observation, policy.weights.flat)])
        return policy(observation)

    simulate(policy.system.edges, draw_paths(policy.system.edges, arrivals, seed), ask)
    return seen


def test_with_nothing_learned_it_is_the_marginal_cost():
    arrivals = Poisson(8.0, 20.0)
    seen = prices_seen(learned_price(SYSTEM, arrivals, replace(NOTHING, slope=at_loads(1.0))), arrivals)
    assert len(seen) > 100 and len({float(price[0]) for _, price, _ in seen}) > 5
    for observation, price, fee in seen:
        assert price == pytest.approx(marginal_step_s(observation)) and fee == 0


def test_the_whole_closed_form_is_the_best_price_at_the_rate_seen():
    arrivals = Poisson(8.0, 20.0)
    policy = learned_price(SYSTEM, arrivals, replace(NOTHING, share=at_loads(1.0)))
    for observation, price, fee in prices_seen(policy, arrivals)[40:60:5]:
        exact = static_price(EDGE, float(observation.rates_hz[1]), arrivals.users, 1.0)
        assert price == pytest.approx(exact, rel=0.1) and fee == 0


def test_an_edge_twice_as_slow_with_half_as_many_requests_asks_the_same_shares():
    slow = System(
        (Edge(LatencyModel(2 * EDGE.latency.slope_s, 2 * EDGE.latency.intercept_s), max_batch=EDGE.max_batch),)
    )
    usual = System((Edge(EDGE.latency, max_batch=EDGE.max_batch),))
    weights = PriceWeights.of(np.linspace(-0.2, 0.8, 2 * LONG + SHORT + 2))
    policies = [learned_price(system, Poisson(8.0), weights) for system in (usual, slow)]
    policies[1] = replace(policies[1], prices_s=2 * policies[0].prices_s)
    seen = prices_seen(policies[0], Poisson(8.0, 10.0))
    for observation, price, fee in seen[5::7]:
        other = replace(observation, rates_hz=observation.rates_hz / 2, system=slow)
        there = policies[1].price_and_fee(other, weights.flat)
        assert there[0] == pytest.approx(2 * price) and there[1] == pytest.approx(2 * fee)


def test_one_and_many_decide_alike():
    edges = [released_edge(4), replace(released_edge(4), transfer_s=0.1)]
    arrivals = Poisson(6.0, 15.0)
    policy = make_policy("learned_price", edges, arrivals)
    paths = draw_paths(edges, arrivals, 1, 3)

    def one_by_one(observation):
        return policy(observation)

    assert simulate(edges, paths, policy).equals(simulate(edges, paths, one_by_one))


def test_it_is_ahead_of_the_best_price_that_does_not_look():
    arrivals = Poisson(8.0, 30.0)
    paths = draw_paths([EDGE], arrivals, 11, 6)
    gains = [
        simulate([EDGE], paths, make_policy(name, [EDGE], arrivals)).gain_s.sum()
        for name in ("learned_price", "posted_price")
    ]
    assert gains[0] > 1.02 * gains[1]


def test_weights_are_what_was_saved(tmp_path):
    weights = PriceWeights.of(np.arange(2.0 * LONG + SHORT + 2))
    save_weights(tmp_path / "price.safetensors", weights)
    assert (load_weights(tmp_path / "price.safetensors").flat == weights.flat).all()
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="other.safetensors' holds no learned price"):
        load_weights(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="fee has shape"):
        PriceWeights(np.zeros(LONG), np.zeros(LONG), np.zeros(3), np.zeros(2))
