"""A price of a step, part closed form and part learned: one frozen set of numbers for every edge.

What can be solved is solved: the best price that does not look, at the rate that is seen (``static_prices``), and what
one more member costs all as the batch is now. How much of either to ask, and what to ask for entering a full edge, is
linear in a few numbers of the state and learned by playing (``learning.price_search``). All of them are shares and
ratios, so that an edge of another speed is nothing new.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitpoint.checks import a_path, finite_array, instance_of
from splitpoint.edge.arrivals import Arrivals
from splitpoint.edge.observation import Observation, System
from splitpoint.edge.policies import at_prices, keep_policy, marginal_step_s, mean_and_spread
from splitpoint.edge.request import Decision
from splitpoint.edge.steady import static_prices
from splitpoint.files import data_path

#: the numbers that ship
SHIPPED = data_path("agents", "learned_price.safetensors")
#: half the logarithm of the load, at which a share of its own is learned; load: work that comes in a second, if every
#: request asked for half of all steps, over full steps a second
LOADS = np.array([0.3, 1.0, 1.45, 1.8, 2.1, 2.5, 3.1])
#: loads at which the closed form is solved beforehand
_TABLE = np.linspace(-2.0, 2.0, 17)
#: what else the shares are linear in
CONTEXT = (
    "faster", "lasting", "inside", "staying", "compute", "dear", "inside_if_dear", "inside_if_busy", "inside_if_moving",
)  # fmt: skip
#: and the fee, beside it
ENTERING = ("always", "full", "queue", "full_and_faster")


@dataclass(frozen=True, eq=False)
class PriceWeights:
    """What is learned.

    Args:
        share: of the closed-form price, at each of ``LOADS`` and for each of ``CONTEXT``, shape (16,).
        slope: times the marginal cost of a step, the same.
        fee: in prices of a tenth of all steps, for each of ``CONTEXT`` and ``ENTERING``, shape (13,).
        memory: how much the rate that is believed leans from that of the last 10 s to those of 1 and 100 s, shape (2,).
    """

    share: NDArray[np.float64]
    slope: NDArray[np.float64]
    fee: NDArray[np.float64]
    memory: NDArray[np.float64]

    def __post_init__(self):
        long, short = len(LOADS) + len(CONTEXT), len(CONTEXT) + len(ENTERING)
        for name, size in (("share", long), ("slope", long), ("fee", short), ("memory", 2)):
            numbers = finite_array(name, getattr(self, name))
            if numbers.shape != (size,):
                raise ValueError(f"{name} has shape {numbers.shape}; valid is ({size},)")
            object.__setattr__(self, name, numbers)

    @property
    def flat(self) -> NDArray[np.float64]:
        """All in one row."""
        return np.concatenate([self.share, self.slope, self.fee, self.memory])

    @classmethod
    def of(cls, flat: ArrayLike) -> "PriceWeights":
        """From one row."""
        long = len(LOADS) + len(CONTEXT)
        row = finite_array("flat", flat)
        return cls(row[:long], row[long : 2 * long], row[2 * long : -2], row[-2:])


@dataclass(frozen=True, eq=False)
class LearnedPrice:
    """A fee and a price of a step on each edge; see ``learned_price``.

    Args:
        weights: what is learned.
        system: the edges.
        prices_s: closed-form prices at the loads of the table, shape (loads, E).
        shares: mean free compute of each edge, shape (E,).
        spread: its standard deviation over its mean, shape (E,).
    """

    weights: PriceWeights
    system: System
    prices_s: NDArray[np.float64]
    shares: NDArray[np.float64]
    spread: NDArray[np.float64]
    many = True

    def __post_init__(self):
        instance_of("weights", self.weights, PriceWeights)
        instance_of("system", self.system, System)
        edges = len(self.system.edges)
        for name, shape in (("prices_s", (len(_TABLE), edges)), ("shares", (edges,)), ("spread", (edges,))):
            if finite_array(name, getattr(self, name), 0.0).shape != shape:
                raise ValueError(f"{name} has shape {np.shape(getattr(self, name))}; valid is {shape}")

    def __call__(self, observation: Observation) -> Decision:
        """See ``Policy``."""
        return at_prices(observation, *self.price_and_fee(observation, self.weights.flat))

    def price_and_fee(self, observation: Observation, flat: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Seconds a step and seconds for entering, shape (…, E) each.

        Args:
            observation: of one request, or of many.
            flat: ``PriceWeights.flat``, or one for each request, shape (…, 47).
        """
        log_rates = np.log(np.maximum(observation.rates_hz, 1e-3))  # (…, 3)
        changes = log_rates[..., [0, 2]] - log_rates[..., [1]]
        believed = log_rates[..., 1] + np.sum(flat[..., -2:] * changes, axis=-1)
        load = (believed - _log_unit_rate(self.system, self.shares)) / 2
        closed_form = self._closed_form_s(load)
        context = self._context(observation, changes, closed_form, load)
        at_load = np.broadcast_to(_hats(load)[..., None, :], (*observation.free.shape, len(LOADS)))
        seen = np.concatenate([at_load, context], axis=-1)  # (…, E, 16)
        long = seen.shape[-1]
        share, slope = (np.maximum(_dot(seen, flat[..., i : i + long]), 0.0) for i in (0, long))
        price = np.maximum(share * closed_form + slope * marginal_step_s(observation), 1e-6)
        full = (observation.inside >= self.system.limits).astype(float)
        queue = full * observation.waiting / self.system.limits
        entering = np.stack([np.ones_like(full), full, queue, full * context[..., 0]], axis=-1)
        fee = _dot(np.concatenate([context, entering], axis=-1), flat[..., 2 * long : -2])
        return price, self.system.parameters.num_steps / 10 * price * np.clip(fee, -2.0, 12.0)

    def _closed_form_s(self, load: NDArray) -> NDArray[np.float64]:
        """Between the table's loads, linearly; shape (…, E)."""
        place = np.clip(np.searchsorted(_TABLE, load) - 1, 0, len(_TABLE) - 2)
        part = np.clip((load - _TABLE[place]) / (_TABLE[1] - _TABLE[0]), 0.0, 1.0)[..., None]
        return self.prices_s[place] * (1 - part) + self.prices_s[place + 1] * part

    def _context(
        self, observation: Observation, changes: NDArray, closed_form: NDArray, load: NDArray
    ) -> NDArray[np.float64]:
        """``CONTEXT``, shape (…, E, 9)."""
        limits, inside = self.system.limits, observation.inside / self.system.limits
        faster, lasting = changes[..., [0]], changes[..., [1]]
        long = 0.4 * self.system.parameters.num_steps
        staying = (observation.remaining >= long).sum(axis=-1) / limits - 0.4 * inside
        dear = np.log(np.maximum(closed_form, 1e-4) / (observation.full_step_s * observation.free)) / 2
        crowded = inside - 0.5
        busy = np.clip(load, LOADS[0], LOADS[-1])[..., None] - LOADS[2]
        compute = observation.free / self.shares - 1
        when = (crowded * dear, crowded * busy, crowded * self.spread)
        numbers = (faster, lasting, crowded, staying, compute, dear, *when)
        return np.stack([np.broadcast_to(number, inside.shape) for number in numbers], axis=-1)


def _log_unit_rate(system: System, shares: NDArray) -> float:
    """Of the requests a second whose halves of all steps are what full batches do."""
    full_step_s = system.table_s[np.arange(len(shares)), system.limits] / shares
    return float(np.log(np.sum(1 / full_step_s) / (system.parameters.num_steps / 2)))


def _hats(load: NDArray) -> NDArray[np.float64]:
    """How near a load is to each of ``LOADS``: linear between neighbours, 1 in all; shape (…, 7)."""
    load = np.clip(load, LOADS[0], LOADS[-1])[..., None]
    left, right = np.append(LOADS[0] - 1, LOADS[:-1]), np.append(LOADS[1:], LOADS[-1] + 1)
    return np.clip(np.minimum((load - left) / (LOADS - left), (right - load) / (right - LOADS)), 0.0, 1.0)


def _dot(numbers: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Over the last axis, the same weights for all edges."""
    return np.einsum("...ef,...f->...e", numbers, weights)


def learned_price(system: System, arrivals: Arrivals, weights: PriceWeights | None = None) -> LearnedPrice:
    """The learned price for some edges: nothing is tuned on them, only the closed form is solved.

    Args:
        system: the edges.
        arrivals: whose crowd is expected; their rate is not used.
        weights: those that ship if left out.

    Raises:
        ValueError: for an argument of another kind.
    """
    instance_of("system", system, System)
    instance_of("arrivals", arrivals, Arrivals)
    shares, spread = mean_and_spread(system)
    rates_hz = np.exp(2 * _TABLE + _log_unit_rate(system, shares))
    prices = np.stack([static_prices(system, float(rate), arrivals.users, shares, sweeps=4) for rate in rates_hz])
    weights = load_weights(SHIPPED) if weights is None else weights
    return LearnedPrice(weights, system, prices, shares, spread)


def save_weights(path: str | Path, weights: PriceWeights) -> None:
    """Write what was learned, as safetensors."""
    a_path("path", path)
    instance_of("weights", weights, PriceWeights)
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(getattr(weights, name)) for name in ("share", "slope", "fee", "memory")}
    save_file(tensors, str(path), metadata={"format": "edge_price"})


def load_weights(path: str | Path) -> PriceWeights:
    """Read what was learned; no pickle and no torch.

    Raises:
        ValueError: if the file is none.
    """
    a_path("path", path)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(str(path))
        return PriceWeights(**{name: found[name].astype(float) for name in ("share", "slope", "fee", "memory")})
    except (KeyError, OSError, SafetensorError) as error:
        raise ValueError(f"path={Path(path).name!r} holds no learned price: {error}") from error


keep_policy("learned_price", learned_price)
