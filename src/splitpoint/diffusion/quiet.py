"""One way to keep the libraries' bars and remarks out of an output while weights are read."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """No loading bars, no weight reports, and no remark about the layers that an adapter leaves alone."""
    logs = (diffusers_logging, transformers_logging)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for remark in ("Already found a `peft_config`", "While injecting the PEFT adapters"):
                warnings.filterwarnings("ignore", message=remark)
            yield
    finally:
        for log, (verbosity, bars) in zip(logs, before):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
