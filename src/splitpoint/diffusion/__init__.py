"""What a split does to an image: profiling, the miniature, personal models, hybrid inference, quality.

Names are imported on first use, so that profiling a machine needs torch and diffusers only.
"""

import logging
from importlib import import_module

# transformers remarks on every import that torchvision is missing; nothing here needs it.
logging.getLogger("transformers.utils.import_utils").addFilter(lambda record: "torchvision" not in record.getMessage())

_HOMES = {
    "profile_step_latency": "profile",
    "load_emoji": "emoji",
    "load_mini": "mini",
    "HybridPipeline": "hybrid",
    "hybrid_generate": "hybrid",
    "measure_pai": "accuracy",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
