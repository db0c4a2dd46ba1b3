"""The command line ``splitpoint``: one entry point, thin over the rooms; each command's room is imported on use."""

import io
import sys
from collections.abc import Sequence
from importlib import import_module

#: name: where its function is, and what it does; each parses ``sys.argv`` itself
COMMANDS = {
    "plan": ("splitpoint.study.commands:plan", "whom to serve, for users of your own from a CSV file"),
    "sweep": ("splitpoint.study.commands:sweep", "every method on many random windows, as a table"),
    "profile": ("splitpoint.diffusion.profile:main", "measure this machine's denoising latency"),
    "measure-pai": ("splitpoint.diffusion.accuracy:main", "measure the accuracy index on the miniature"),
    "personalize": ("splitpoint.diffusion.personalize:main", "train vendors' personal models"),
    "train-mini": ("splitpoint.diffusion.mini_training:main", "train the miniature again"),
    "train-judges": ("splitpoint.diffusion.judges_training:main", "train the judges of its pictures"),
    "train-agent": ("splitpoint.study.learning:main", "train the agents and make their tables again"),
    "train-policy": (
        "splitpoint.study.learned_price:main",
        "train the edge's cost curves of notebook 11, and judge them",
    ),
    "edge-tables": (
        "splitpoint.study.living_edge:main",
        "play every policy on an edge over time: notebook 10's tables",
    ),
    "edge": ("splitpoint.serving.edge_command:main", "start an edge that serves devices over the network"),
    "browser-files": (
        "splitpoint.serving.browser_files:main",
        "what browsers need to be devices in a class",
    ),
    "device": ("splitpoint.serving.device:main", "draw pictures in a personal style, the first steps on an edge"),
    "load": ("splitpoint.serving.load:main", "many devices at once: what an edge takes, and how well it predicts"),
    "serving-tables": ("splitpoint.study.serving:main", "run edges and measure how well they predict: notebook 12"),
    "draw-emoji": ("splitpoint.diffusion.emoji:main", "fetch and draw the emoji sets again"),
}
EXAMPLE = "example: splitpoint plan users.csv --edge A100 --software compiled --out plan.csv"


def usage() -> str:
    """What ``splitpoint --help`` prints."""
    lines = [f"  {name:14s} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: splitpoint COMMAND …", "", *lines, "", EXAMPLE, "splitpoint COMMAND --help says more."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a refusal is one line on standard error and exit code 2.

    Args:
        arguments: as typed after ``splitpoint``; those of this process if left out.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without these characters must not end the work
    if not typed or typed[0] in ("-h", "--help"):
        print(usage())
        return 0 if typed else 2
    name, before = typed[0], sys.argv
    if name not in COMMANDS:
        print(f"splitpoint: {name!r} is unknown; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, function = COMMANDS[name][0].split(":")
    sys.argv = [f"splitpoint {name}", *typed[1:]]
    try:
        getattr(import_module(module), function)()
    except (ValueError, OSError) as error:
        print(f"splitpoint {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"splitpoint {name}: stopped", file=sys.stderr)
        return 130
    finally:
        sys.argv = before
    return 0
