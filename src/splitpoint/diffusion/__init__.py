"""What a split does to an image: profiling, the miniature, personal models, hybrid inference, quality.

Names are imported on first use, so that profiling a machine needs torch and diffusers only.
"""

import logging

from splitpoint.lazy import on_first_use

# transformers remarks on every import that torchvision is missing; nothing here needs it.
logging.getLogger("transformers.utils.import_utils").addFilter(lambda record: "torchvision" not in record.getMessage())

_HOMES = {
    "profile_step_latency": "profile",
    "load_emoji": "emoji",
    "load_mini": "mini",
    "HybridPipeline": "hybrid",
    "hybrid_generate": "hybrid",
    "load_users": "users",
    "Request": "batch",
    "StepBatch": "batch",
    "family_of": "families",
    "measure_pai": "accuracy",
}

__all__ = list(_HOMES)

__getattr__ = on_first_use(__name__, _HOMES)
