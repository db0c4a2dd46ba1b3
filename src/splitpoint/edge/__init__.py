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
from splitpoint.edge.capacity import (
    Capacity,
    CapacityPath,
    ConstantCapacity,
    DutyCycleCapacity,
    MarkovCapacity,
    RecordedCapacity,
)
from splitpoint.edge.core import EdgeCore
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

__all__ = [
    "FITTED_TRACES",
    "HOME",
    "PARAMETERS",
    "ArrivalRates",
    "Arrivals",
    "Capacity",
    "CapacityPath",
    "ConstantCapacity",
    "Decision",
    "Departure",
    "DutyCycleCapacity",
    "Edge",
    "EdgeCore",
    "FittedTrace",
    "HiddenRegimes",
    "LearnedCurve",
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
    "Users",
    "batch_over_time",
    "best_steps",
    "demand_of",
    "draw_paths",
    "fitted_trace",
    "grant_value_s",
    "load_curve",
    "make_policy",
    "mean_inside",
    "observe",
    "policies",
    "read_trace",
    "register_policy",
    "save_curve",
    "simulate",
    "static_price",
    "static_prices",
    "steady_state",
]
