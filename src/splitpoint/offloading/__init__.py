"""Where to split and whom to serve: latency and accuracy models, the problem, its solvers."""

from splitpoint.offloading.curves import (
    RELEASED_ACCURACY,
    AccuracyCurve,
    AccuracyModel,
    LatencyModel,
    StepLatency,
    TableLatency,
    TwoPieceLatency,
)
from splitpoint.offloading.fits import Fit, confidence_band, fit_accuracy, fit_latency
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
from splitpoint.offloading.users import plan_rows, read_users

__all__ = [
    "RELEASED_ACCURACY",
    "AccuracyCurve",
    "AccuracyModel",
    "Fit",
    "Instance",
    "LatencyModel",
    "Outcome",
    "Plan",
    "Profiles",
    "StepLatency",
    "SystemParameters",
    "TableLatency",
    "TwoPieceLatency",
    "check_plan",
    "confidence_band",
    "evaluate",
    "fit_accuracy",
    "fit_latency",
    "grant_gains",
    "optimal_split",
    "plan_rows",
    "published_latency",
    "published_profiles",
    "quiet_highs",
    "read_users",
    "register",
    "released_instance",
    "sample_instance",
    "solve",
    "solvers",
]
