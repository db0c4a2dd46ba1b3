"""Where to split and whom to serve: latency and accuracy models, the problem, its solvers."""

from splitpoint.offloading.curves import AccuracyModel, Fit, LatencyModel, confidence_band, fit_accuracy, fit_latency
from splitpoint.offloading.mixed_integer import quiet_highs  # its import also puts "milp" into the table of solvers
from splitpoint.offloading.problem import (
    Instance,
    Outcome,
    Plan,
    Profiles,
    SystemParameters,
    check_plan,
    evaluate,
    published_latency,
    published_profiles,
    released_instance,
    sample_instance,
)
from splitpoint.offloading.solvers import register, solve, solvers
from splitpoint.offloading.split import grant_gains, optimal_split

__all__ = [
    "AccuracyModel",
    "Fit",
    "Instance",
    "LatencyModel",
    "Outcome",
    "Plan",
    "Profiles",
    "SystemParameters",
    "check_plan",
    "confidence_band",
    "evaluate",
    "fit_accuracy",
    "fit_latency",
    "grant_gains",
    "optimal_split",
    "published_latency",
    "published_profiles",
    "quiet_highs",
    "register",
    "released_instance",
    "sample_instance",
    "solve",
    "solvers",
]
