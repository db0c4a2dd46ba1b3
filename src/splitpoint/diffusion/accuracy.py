"""How much of the users' own models survives a split: the personalized accuracy index and its parts.

The index has the form of the authors' released code (fitting/point_generation.py): a text-image score times a
sigmoid of the distance between the users' pictures of one prompt. Its constants come from real pictures, before any
split is measured (``calibrate``), and are never fitted to the published curve.
"""

import argparse
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torchmetrics.functional.multimodal import clip_score

from splitpoint.checks import finite_number, instance_of, one_of, one_or_many, whole_number
from splitpoint.diffusion.families import family_of
from splitpoint.diffusion.hybrid import Cancel, HybridPipeline, load_mini_hybrid
from splitpoint.diffusion.judges import Distance, Judges, mini_judges
from splitpoint.diffusion.packet import check_prompt
from splitpoint.files import can_write, data_path, read_meta, write_atomically, write_meta
from splitpoint.progress import progress_bar
from splitpoint.tables import drop_parts, parts_folder, read_part, write_part

MINI_USERS = ("noto", "twemoji", "openmoji", "fluent")  # of the committed measurement, whoever may come later
SCHEDULES = {  # other ways to space the steps over the noise levels, each as settings of ``HybridPipeline``
    "trailing": {"num_steps": 50, "scheduler": "euler", "scheduler_options": {"timestep_spacing": "trailing"}},
    "karras": {"num_steps": 50, "scheduler": "euler", "scheduler_options": {"use_karras_sigmas": True}},
    "exponential": {"num_steps": 50, "scheduler": "euler", "scheduler_options": {"use_exponential_sigmas": True}},
    "20_steps": {"num_steps": 20, "scheduler": "ddim"},
}
RELEASED_FLOOR = 3.0  # the released index is sigmoid(30 (d - 0.1)): identical pictures get sigmoid(-3)


@dataclass(frozen=True)
class Calibration:
    """The index's constants, from real pictures alone.

    Identical pictures get ``sigmoid(-3)``, as in the released index (30 times 0.1); pictures that differ as much as
    two vendors' drawings of one thing get ``sigmoid(+3)``; a text-image score as high as on real pictures counts as 1.
    """

    real_score: float  # mean text-image score of real pictures with their own prompts
    real_distance: float  # mean distance between two styles' real pictures of one prompt

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            finite_number(name, value, 0, open_end=True)

    @property
    def steepness(self) -> float:
        """Of the sigmoid, per unit of distance: 30 in the released index."""
        return 2 * RELEASED_FLOOR / self.real_distance

    @property
    def midpoint(self) -> float:
        """Distance at which the sigmoid is one half: 0.1 in the released index."""
        return self.real_distance / 2

    def pai(self, text_score: ArrayLike, distance: ArrayLike) -> np.ndarray:
        """Personalized accuracy index of text-image scores and mean distances between the users' pictures.

        Args:
            text_score: cosine of text and image features, any shape.
            distance: mean distance to the other users' pictures, any shape that broadcasts.

        Returns:
            the index, of the broadcast shape; 1 for real pictures on average, so single ones may exceed it.
        """
        distance = np.asarray(distance, dtype=float)
        apart = 1 / (1 + np.exp(-self.steepness * (distance - self.midpoint)))
        return np.asarray(text_score, dtype=float) / self.real_score * apart


def mini_prompts() -> tuple[str, ...]:
    """The 20 prompts of the committed measurement: every tenth concept of the miniature, from the sixth on."""
    from splitpoint.diffusion.emoji import default_concepts

    return default_concepts()[5::10]


def real_pictures(styles: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
    """What the vendors drew, (prompts, styles, 3, 64, 64) with values in [0, 1].

    Raises:
        ValueError: for an unknown style or prompt, or one that a style never drew.
    """
    from splitpoint.diffusion.emoji import load_emoji

    drawn = load_emoji(styles, prompts)
    if len(drawn) < len(styles) * len(prompts):
        raise ValueError(f"prompts={list(prompts)} holds concepts that not all of styles={list(styles)} have drawn")
    pictures = torch.from_numpy(drawn.images).permute(0, 3, 1, 2).float() / 255
    return pictures.reshape(len(prompts), len(styles), *pictures.shape[1:])


@torch.no_grad()
def text_scores(pictures: torch.Tensor, prompts: Sequence[str], clip: Callable[[], tuple]) -> np.ndarray:
    """Text-image score of each picture with its prompt, (B,): torchmetrics' CLIPScore divided by 100.

    Args:
        pictures: (B, 3, H, W), values in [0, 1].
        prompts: one per picture.
        clip: a callable that returns (model, processor).

    Raises:
        ValueError: if the lengths differ.
    """
    if len(pictures) != len(prompts):
        raise ValueError(f"prompts has length {len(prompts)}; {len(pictures)} pictures need one each")
    levels = (pictures * 255).round().to(torch.uint8)
    return np.array([clip_score(level[None], [prompt], clip).item() / 100 for level, prompt in zip(levels, prompts)])


def distances_between_users(pictures: torch.Tensor, distance: Distance) -> np.ndarray:
    """Each user's mean distance to the others' pictures of the same thing.

    Args:
        pictures: (cases, users, 3, H, W), values in [0, 1].
        distance: of two picture batches.

    Returns:
        (cases, users); the mean over users is the mean over all pairs.

    Raises:
        ValueError: for fewer than two users.
    """
    cases, users = pictures.shape[:2]
    if users < 2:
        raise ValueError(f"pictures has {users} user; a distance between users needs at least 2")
    pairs = list(combinations(range(users), 2))
    first, second = zip(*pairs)
    apart = distance(pictures[:, first].flatten(0, 1), pictures[:, second].flatten(0, 1))
    apart = apart.reshape(cases, len(pairs)).double().cpu().numpy()
    total = np.zeros((cases, users))
    for column, (i, j) in enumerate(pairs):
        total[:, i] += apart[:, column]
        total[:, j] += apart[:, column]
    return total / (users - 1)


def calibrate(judges: Judges, pictures: torch.Tensor, prompts: Sequence[str]) -> Calibration:
    """The index's constants from real pictures.

    Args:
        judges: the networks that will judge the splits.
        pictures: (prompts, styles, 3, H, W), values in [0, 1]: every prompt drawn in every style.
        prompts: one per first index.
    """
    styles = pictures.shape[1]
    repeated = [prompt for prompt in prompts for _ in range(styles)]
    scores = text_scores(pictures.flatten(0, 1), repeated, judges.clip)
    return Calibration(float(scores.mean()), float(distances_between_users(pictures, judges.distance).mean()))


def measure_pai(
    prompts: Sequence[str],
    users: Sequence[str],
    split_points: Sequence[int],
    seeds: Sequence[int] = (0,),
    *,
    hybrid: HybridPipeline | None = None,
    judges: Judges | None = None,
    calibration: Calibration | None = None,
    describe: Callable[[str, str], str] | None = None,
    path: str | Path | None = None,
    command: str = "splitpoint.diffusion.accuracy.measure_pai(…)",
    progress: bool | None = None,
    cancel: Cancel | None = None,
) -> pd.DataFrame:
    """Draw every prompt for every user at every split point, and measure the index and its parts.

    The users of one prompt and seed share the starting noise and the edge's steps. With a path, each finished prompt
    and seed is kept, and a run that was interrupted goes on from there to the same table.

    Args:
        prompts: what to draw.
        users: at least two names of ``hybrid.users``.
        split_points: steps on the device, in [0, N].
        seeds: repetitions; the noise follows from prompt and seed.
        hybrid: models and settings of the run; the miniature if left out.
        judges: the judges; the miniature's if left out.
        calibration: the index's constants; those in ``data/quality/calibration.json`` if left out.
        describe: (prompt, user) -> text that the picture is scored against; the prompt itself if left out.
        path: CSV file for the finished table.
        command: how to make that file again, for its sidecar.
        progress: True shows a bar, False none; by default one on a terminal and in a notebook.
        cancel: a callable or ``threading.Event``; true ends the run with ``GenerationCancelled``.

    Returns:
        One row a picture: prompt, user, seed, noise_seed, num_steps, split_point, sigma (noise per unit of signal at
        the hand-over), text_score, distance (the user's
        mean distance to the others), style, style_ok (only where there is a style network), pai.

    Raises:
        ValueError: naming the argument, its value and the valid range; also if ``path`` holds another measurement.
    """
    prompts, users, seeds = _listed("prompts", prompts), _listed("users", users), _listed("seeds", seeds)
    split_points = _listed("split_points", split_points)
    if len(users) < 2:
        raise ValueError(f"users={users} has one name; a distance between users needs at least 2")
    for prompt in prompts:
        check_prompt("prompts", prompt)
    for seed in seeds:
        whole_number("seeds", seed, 0)
    if hybrid is not None:
        instance_of("hybrid", hybrid, HybridPipeline)
    hybrid = load_mini_hybrid() if hybrid is None else hybrid
    judges = mini_judges() if judges is None else judges
    calibration = load_calibration() if calibration is None else calibration
    for user in users:
        hybrid.user(user)
    for split in split_points:
        whole_number("split_points", split, 0, hybrid.num_steps)
    split_points = [int(split) for split in split_points]
    settings = _settings(hybrid, users, split_points, judges, calibration)
    finished = _Finished(path, settings)
    sigmas = [float(hybrid.noise_levels()[hybrid.num_steps - split]) for split in split_points]
    cases = [(prompt, int(seed)) for seed in seeds for prompt in prompts]
    with progress_bar("prompts x seeds", len(cases), progress) as bar:
        for prompt, seed in cases:
            if (prompt, seed) not in finished:
                pictures = hybrid.compare(
                    prompt, users, split_points, noise_seed(prompt, seed), progress=False, cancel=cancel
                )
                table = _judge(
                    pictures, prompt, users, split_points, seed, hybrid.num_steps, judges, calibration, describe
                )
                table.insert(6, "sigma", np.repeat(sigmas, len(users)))
                finished.add(table)
            bar.update()
    return finished.table(cases, command)


def noise_seed(prompt: str, seed: int) -> int:
    """Seed of the starting noise of a prompt's repetition: the same for all users, whatever else is measured."""
    return zlib.crc32(f"{prompt}/{seed}".encode())


def summarize_pai(table: pd.DataFrame, value: str = "pai", resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Mean of one column at each split point, with a 95 % bootstrap interval over whole prompts.

    Args:
        table: as from ``measure_pai``.
        value: column to average, for instance "pai", "text_score", "distance" or "style_ok".
        resamples: bootstrap draws; prompts are drawn, since pictures of one prompt are alike.
        seed: of the draws.

    Returns:
        Columns split_point, mean, low, high, prompts, samples.
    """
    instance_of("table", table, pd.DataFrame)
    one_of("value", value, table.columns)
    whole_number("resamples", resamples, 1)
    whole_number("seed", seed, 0)
    by_prompt = table.groupby(["prompt", "split_point"])[value].mean().unstack().to_numpy()
    draws = np.random.default_rng(seed).integers(len(by_prompt), size=(resamples, len(by_prompt)))
    low, high = np.percentile(by_prompt[draws].mean(axis=1), [2.5, 97.5], axis=0)
    return pd.DataFrame(
        {
            "split_point": sorted(table["split_point"].unique()),
            "mean": by_prompt.mean(axis=0),
            "low": low,
            "high": high,
            "prompts": len(by_prompt),
            "samples": table.groupby("split_point").size().to_numpy(),
        }
    )


def save_calibration(calibration: Calibration, path: str | Path, *, command: str, settings: dict) -> Path:
    """Write the index's constants and their provenance."""
    path = Path(path)
    write_atomically(path, json.dumps(asdict(calibration), indent=1).encode())
    write_meta(path, kind="measured", command=command, settings=settings)
    return path


def load_calibration(path: str | Path | None = None) -> Calibration:
    """Read the index's constants, from ``data/quality/calibration.json`` unless another path is given."""
    path = data_path("quality", "calibration.json") if path is None else Path(path)
    read_meta(path)
    return Calibration(**json.loads(path.read_text()))


class _Finished:
    """The finished cases of a measurement: each a part in a folder beside the final file until all are there."""

    def __init__(self, path: str | Path | None, settings: dict):
        self.path, self.settings, self.rows = None if path is None else Path(path), settings, {}
        if self.path is None:
            return
        can_write("path", self.path)
        self.folder = parts_folder(self.path, settings)
        if self.path.exists():
            self._take(pd.read_csv(self.path), read_meta(self.path)["settings"])
            return
        for part in sorted(self.folder.glob("*.json")):
            if (rows := read_part(part)) is None:
                print(f"{part.name} of {self.folder.parent.name} was cut off or changed; its case is measured again")
            else:
                self._take(pd.DataFrame(rows), settings)

    def _take(self, table: pd.DataFrame, settings: dict) -> None:
        differing = [key for key, value in json.loads(json.dumps(self.settings)).items() if settings.get(key) != value]
        if differing and self.path is not None:
            raise ValueError(
                f"path: {self.path.name} holds another measurement (other {', '.join(differing)}); "
                "choose another path or remove the file"
            )
        self.rows |= {case: rows for case, rows in table.groupby(["prompt", "seed"], sort=False)}

    def __contains__(self, case: tuple[str, int]) -> bool:
        return case in self.rows

    def add(self, rows: pd.DataFrame) -> None:
        rows = pd.read_csv(io.StringIO(rows.to_csv(index=False, float_format="%.6g")))
        prompt, seed = rows["prompt"].iloc[0], int(rows["seed"].iloc[0])
        self.rows[prompt, seed] = rows
        if self.path is not None:
            write_part(self.folder / f"{noise_seed(prompt, seed)}.json", rows.to_dict("records"))

    def table(self, cases: list[tuple[str, int]], command: str) -> pd.DataFrame:
        table = pd.concat([self.rows[case] for case in cases], ignore_index=True)
        if self.path is not None:
            write_atomically(self.path, table.to_csv(index=False).encode())
            write_meta(
                self.path,
                kind="measured",
                command=command,
                settings=self.settings,
                prompts=list(dict.fromkeys(prompt for prompt, _ in cases)),
                seeds=sorted({seed for _, seed in cases}),
            )
            drop_parts(self.folder)
        return table


def _listed(name: str, values: Sequence) -> list:
    values = one_or_many(name, values, str | int)
    if any(value in values[:place] for place, value in enumerate(values)):
        raise ValueError(f"{name}={values} holds one value twice")
    return values


def _settings(hybrid: HybridPipeline, users, split_points, judges: Judges, calibration: Calibration) -> dict:
    weights = hashlib.blake2b(digest_size=8)
    models = {id(model): model for user in users for model in [family_of(hybrid.user(user).pipeline).network]}
    for model in [hybrid.family.network, *models.values()]:
        for name, tensor in sorted(model.state_dict().items()):
            weights.update(name.encode() + tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return {
        "num_steps": hybrid.num_steps,
        "guidance_scale": hybrid.guidance_scale,
        "scheduler": hybrid.scheduler,
        "scheduler_config": hybrid.scheduler_config,
        "packet_dtype": hybrid.packet_dtype,
        "users": users,
        "split_points": split_points,
        "judges": judges.name,
        "calibration": asdict(calibration),
        "weights": weights.hexdigest(),
    }


def _judge(
    pictures: torch.Tensor,
    prompt: str,
    users,
    split_points,
    seed: int,
    num_steps: int,
    judges: Judges,
    calibration: Calibration,
    describe,
) -> pd.DataFrame:
    flat = pictures.flatten(0, 1)
    cells = [(split, user) for split in split_points for user in users]
    texts = [prompt if describe is None else describe(prompt, user) for _, user in cells]
    apart = distances_between_users(pictures, judges.distance)
    table = pd.DataFrame(
        {
            "prompt": prompt,
            "user": [user for _, user in cells],
            "seed": seed,
            "noise_seed": noise_seed(prompt, seed),
            "num_steps": num_steps,
            "split_point": [split for split, _ in cells],
            "text_score": text_scores(flat, texts, judges.clip),
            "distance": apart.ravel(),
        }
    )
    if judges.style is not None:
        table["style"] = judges.style(flat)
        table["style_ok"] = (table["style"] == table["user"]).astype(int)
    table["pai"] = calibration.pai(table["text_score"], np.repeat(apart.mean(axis=1), len(users)))
    return table


def main() -> None:
    """Calibrate on real pictures, or make the committed measurement; each only when asked for."""
    from splitpoint.diffusion.emoji import default_concepts

    parser = argparse.ArgumentParser(description="The personalized accuracy index of the miniature.")
    parser.add_argument("--calibrate", action="store_true", help="write data/quality/calibration.json")
    parser.add_argument("--measure", action="store_true", help="write data/quality/pai_mini.csv, or go on with it")
    parser.add_argument("--schedules", action="store_true", help="the same with one seed under other step schedules")
    given = parser.parse_args()
    if given.calibrate:
        concepts = default_concepts()
        found = calibrate(mini_judges(), real_pictures(MINI_USERS, concepts), concepts)
        save_calibration(
            found,
            data_path("quality", "calibration.json"),
            command="splitpoint measure-pai --calibrate",
            settings={"styles": MINI_USERS, "concepts": len(concepts), "pictures": "real, none generated"},
        )
        print(found)
    if given.measure:
        hybrid = load_mini_hybrid(merge=True, num_steps=50)
        table = measure_pai(
            mini_prompts(),
            MINI_USERS,
            range(0, 51, 5),
            (0, 1, 2),
            hybrid=hybrid,
            path=data_path("quality", "pai_mini.csv"),
            command="splitpoint measure-pai --measure",
        )
        print(summarize_pai(table).round(3).to_string(index=False))
    for name, settings in SCHEDULES.items() if given.schedules else ():
        hybrid = load_mini_hybrid(merge=True, **settings)
        table = measure_pai(
            mini_prompts(),
            MINI_USERS,
            np.linspace(0, hybrid.num_steps, 11).astype(int).tolist(),
            (0,),
            hybrid=hybrid,
            path=data_path("quality", "schedules", f"{name}.csv"),
            command="splitpoint measure-pai --schedules",
        )
        print(f"{name}\n{summarize_pai(table).round(3).to_string(index=False)}")


if __name__ == "__main__":
    main()
