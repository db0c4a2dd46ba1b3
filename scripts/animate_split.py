"""Draw the README's animated picture: one prompt, four users, the split point moving.

``python scripts/animate_split.py`` writes ``data/readme/split_point.webp``.
"""

import argparse

from splitpoint.diffusion.accuracy import MINI_USERS, noise_seed
from splitpoint.diffusion.emoji import WEIGHTS_LICENCE
from splitpoint.diffusion.hybrid import load_mini_hybrid
from splitpoint.files import data_path, write_atomically, write_meta
from splitpoint.study.figures.images import split_animation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="birthday cake")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    hybrid, splits = load_mini_hybrid(num_steps=50), list(range(0, 51, 5))
    pictures = hybrid.compare(given.prompt, MINI_USERS, splits, seed=noise_seed(given.prompt, given.seed))
    path = data_path("readme", "split_point.webp")
    write_atomically(path, split_animation(pictures, MINI_USERS, splits, hybrid.num_steps, given.prompt))
    settings = {"prompt": given.prompt, "users": MINI_USERS, "split_points": splits, "num_steps": hybrid.num_steps}
    command = f"python scripts/animate_split.py --prompt '{given.prompt}' --seed {given.seed}"
    write_meta(path, kind="simulated", command=command, seed=given.seed, settings=settings, licence=WEIGHTS_LICENCE)
    print(f"{path.relative_to(path.parents[2])}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
