"""One progress bar for all long work: one line of text on standard output, which leaves nothing behind.

A bar drawn by widgets would stay in a saved notebook as a broken one.
"""

import os
import sys

from tqdm import tqdm


def progress_bar(title: str, total: float, progress: bool | None = None, *, unit: str = "it", done: float = 0) -> tqdm:
    """A bar that appears after two seconds, or at once where it was asked for, and goes when it is closed.

    Args:
        title: what is under way.
        total: how many units make the whole.
        progress: True shows it, False does not; by default it is shown in a terminal and in a notebook, unless the
            environment variable TQDM_DISABLE is set.
        unit: name of a unit.
        done: units that were done before.
    """
    delay = 0 if progress else 2
    if progress is None:
        in_notebook = type(sys.stdout).__module__.startswith("ipykernel")
        progress = not os.environ.get("TQDM_DISABLE") and (in_notebook or sys.stdout.isatty())
    return tqdm(
        total=total,
        initial=done,
        desc=title,
        unit=unit,
        unit_scale=total > 10_000,
        disable=not progress,
        file=sys.stdout,
        leave=False,
        delay=delay,
    )
