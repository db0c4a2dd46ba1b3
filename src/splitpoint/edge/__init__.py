"""Requests over time: the edge's rules, where requests come from, a fast simulator, policies and bounds."""

from splitpoint.edge.arrivals import (
    FITTED_TRACES,
    Arrivals,
    FittedTrace,
    HiddenRegimes,
    Path,
    Poisson,
    Ramp,
    Recorded,
    Users,
    draw_paths,
    fitted_trace,
    read_trace,
)
from splitpoint.edge.bounds import Clairvoyant, bracket, clairvoyant, price_bound, segment_costs, slot_bound
from splitpoint.edge.capacity import (
    Capacity,
    CapacityPath,
    ConstantCapacity,
    DutyCycleCapacity,
    MarkovCapacity,
    RecordedCapacity,
)
from splitpoint.edge.core import EdgeCore
from splitpoint.edge.learned_price import LearnedPrice, learned_price
from splitpoint.edge.link import Link
from splitpoint.edge.observation import ArrivalRates, Observation, System, observe
from splitpoint.edge.policies import (
    LearnedCurve,
    Policy,
    load_curve,
    make_policy,
    policies,
    register_policy,
    save_curve,
)
from splitpoint.edge.request import HOME, PARAMETERS, Decision, Departure, Edge, Request, grant_value_s
from splitpoint.edge.simulator import Simulation, batch_over_time, simulate
from splitpoint.edge.steady import best_steps, demand_of, mean_inside, static_price, static_prices, steady_state
from splitpoint.edge.twin import Twin

__all__ = [
    "FITTED_TRACES",
    "HOME",
    "PARAMETERS",
    "ArrivalRates",
    "Arrivals",
    "Capacity",
    "CapacityPath",
    "Clairvoyant",
    "ConstantCapacity",
    "Decision",
    "Departure",
    "DutyCycleCapacity",
    "Edge",
    "EdgeCore",
    "FittedTrace",
    "HiddenRegimes",
    "LearnedCurve",
    "LearnedPrice",
    "Link",
    "MarkovCapacity",
    "Observation",
    "Path",
    "Poisson",
    "Policy",
    "Ramp",
    "Recorded",
    "RecordedCapacity",
    "Request",
    "Simulation",
    "System",
    "Twin",
    "Users",
    "batch_over_time",
    "best_steps",
    "bracket",
    "clairvoyant",
    "demand_of",
    "draw_paths",
    "fitted_trace",
    "grant_value_s",
    "learned_price",
    "load_curve",
    "make_policy",
    "mean_inside",
    "observe",
    "policies",
    "price_bound",
    "read_trace",
    "register_policy",
    "save_curve",
    "segment_costs",
    "simulate",
    "slot_bound",
    "static_price",
    "static_prices",
    "steady_state",
]
