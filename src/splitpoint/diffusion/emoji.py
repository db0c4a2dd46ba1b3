"""The data set of the miniature: openly licensed emoji, the same concept drawn by several vendors.

A concept is what a prompt names ("birthday cake"); a style is the vendor who drew it. Each style is one
lossless WebP mosaic of 64-pixel tiles under ``data/emoji/``, with its licence in the sidecar; ``emoji.csv`` says which
tile shows which concept. ``splitpoint draw-emoji --rebuild`` makes them again from named npm packages.
"""

import argparse
import csv
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from splitpoint.checks import one_or_many
from splitpoint.files import data_path, read_meta, write_atomically, write_meta, write_rows

PIXELS = 64
TILES_PER_ROW = 32

# Style: (npm package, version, vendor, licence, where the licence is stated).
SOURCES = {
    "noto": (
        "@iconify-json/noto",
        "1.2.9",
        "Google, Noto Emoji",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji/blob/main/svg/LICENSE",
    ),
    "twemoji": (
        "@iconify-json/twemoji",
        "1.2.5",
        "Twitter, maintained by jdecked",
        "CC-BY-4.0",
        "https://creativecommons.org/licenses/by/4.0/",
    ),
    "openmoji": (
        "@iconify-json/openmoji",
        "1.2.29",
        "OpenMoji, HfG Schwäbisch Gmünd",
        "CC-BY-SA-4.0",
        "https://creativecommons.org/licenses/by-sa/4.0/",
    ),
    "fluent": (
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "Microsoft, Fluent Emoji (flat)",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE",
    ),
    "blob": (
        "@iconify-json/noto-v1",
        "1.2.5",
        "Google, Noto Emoji v1",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji/blob/main/svg/LICENSE",
    ),
    "emojione": (
        "@iconify-json/emojione",
        "1.2.3",
        "EmojiOne v2",
        "CC-BY-4.0",
        "https://creativecommons.org/licenses/by/4.0/",
    ),
}
STYLES = tuple(SOURCES)
#: of everything that was trained on all styles, and of the pictures it draws: the strictest of the artwork's licences
WEIGHTS_LICENCE = "CC-BY-SA-4.0"
NAMES_SOURCE = (
    "emojibase-data",
    "17.0.0",
    "emojibase",
    "MIT",
    "https://github.com/milesj/emojibase/blob/master/LICENSE",
)


@dataclass(frozen=True)
class Emoji:
    """Images with what they show: row i of ``images`` is concept ``concepts[concept[i]]`` in ``styles[style[i]]``.

    Attributes:
        images: uint8 (M, 64, 64, 3), RGB on white.
        concept: int (M,), index into ``concepts``.
        style: int (M,), index into ``styles``.
        concepts: names, each also the prompt that asks for it.
        styles: vendors.
    """

    images: np.ndarray
    concept: np.ndarray
    style: np.ndarray
    concepts: tuple[str, ...]
    styles: tuple[str, ...]

    @property
    def prompts(self) -> list[str]:
        """The prompt of every image (M,)."""
        return [self.concepts[i] for i in self.concept]

    def __len__(self) -> int:
        return len(self.images)


@lru_cache(maxsize=1)
def emoji_table() -> tuple[dict, ...]:
    """One record a concept: name, hexcode, group, subgroup, keywords (list) and, per style, its tile number or None.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    path = data_path("emoji", "emoji.csv")
    read_meta(path)
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            row["keywords"] = row["keywords"].split("|") if row["keywords"] else []
            row.update({style: int(row[style]) if row[style] else None for style in STYLES})
            rows.append(row)
    return tuple(rows)


@lru_cache(maxsize=len(STYLES))
def _tiles(style: str) -> np.ndarray:
    path = data_path("emoji", f"{style}.webp")
    read_meta(path)
    mosaic = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = mosaic.shape[0] // PIXELS, mosaic.shape[1] // PIXELS
    return mosaic.reshape(rows, PIXELS, columns, PIXELS, 3).swapaxes(1, 2).reshape(-1, PIXELS, PIXELS, 3)


def load_emoji(styles: Sequence[str] = STYLES, concepts: Sequence[str] | None = None) -> Emoji:
    """Images of the given concepts in the given styles, ordered by concept, then by style.

    Args:
        styles: any of ``STYLES``.
        concepts: names as in ``emoji_table()``; all when left out. A style that never drew a concept is skipped.

    Returns:
        an ``Emoji`` set.

    Raises:
        ValueError: for an empty list, an unknown style or an unknown concept (with the nearest known ones).
    """
    styles = _known("styles", styles, STYLES)
    table = {row["name"]: row for row in emoji_table()}
    concepts = _known("concepts", tuple(table) if concepts is None else concepts, tuple(table))
    index = [
        (c, s, table[name][style])
        for c, name in enumerate(concepts)
        for s, style in enumerate(styles)
        if table[name][style] is not None
    ]
    if not index:
        raise ValueError(f"concepts={list(concepts)!r}: none of these was drawn in styles={list(styles)!r}")
    images = np.stack([_tiles(styles[s])[tile] for _, s, tile in index])
    concept, style, _ = np.array(index).T
    return Emoji(images, concept, style, concepts, styles)


def known_concepts(styles: Sequence[str] = STYLES) -> tuple[str, ...]:
    """Names of the concepts that every one of ``styles`` has drawn.

    Raises:
        ValueError: for an unknown style.
    """
    styles = _known("styles", styles, STYLES)
    return tuple(row["name"] for row in emoji_table() if all(row[style] is not None for style in styles))


@lru_cache(maxsize=1)
def default_concepts() -> tuple[str, ...]:
    """The concepts of the committed miniature: drawn by every style, told apart at a glance."""
    path = data_path("emoji", "concepts.txt")
    read_meta(path)
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1])


@lru_cache(maxsize=1)
def unseen_concepts() -> tuple[str, ...]:
    """Concepts that no network of this project is trained on, so that each can be tried on something new."""
    names = np.random.default_rng(0).permutation([row["name"] for row in emoji_table()])
    return tuple(sorted(set(names[: len(names) // 6].tolist()) - set(default_concepts())))


def nearest(word: str, known: Sequence[str], number: int = 3) -> list[str]:
    """Known names most like a word, by shared letters; for messages."""
    from difflib import get_close_matches

    inside = [name for name in known if word and word in name.split()]
    close = get_close_matches(word, known, n=number, cutoff=0.0)
    return list(dict.fromkeys(inside + close))[:number]


def _known(argument: str, given: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    given = tuple(one_or_many(argument, given))
    valid = set(known)
    for name in given:
        if not isinstance(name, str) or name not in valid:
            near = ", ".join(nearest(str(name), known))
            raise ValueError(f"{argument} holds {name!r}, which is unknown; nearest: {near}")
    return given


# --- making the files again; needs npm and the package resvg_py, which nothing else does ---


def rebuild(folder: Path | None = None) -> None:
    """Fetch the named packages with npm, render every emoji at 64 pixels on white, and write ``data/emoji/``.

    Args:
        folder: where to write; ``data/emoji`` when left out.

    Raises:
        RuntimeError: if npm or resvg_py is not installed.
    """
    folder = data_path("emoji") if folder is None else Path(folder)
    with tempfile.TemporaryDirectory() as scratch:
        names = json.loads(_packed(NAMES_SOURCE, "en/data.json", scratch))
        labels = json.loads(_packed(NAMES_SOURCE, "meta/groups.json", scratch))
        rows = [_row(entry, labels) for entry in names if _wanted(entry, labels)]
        for style, source in SOURCES.items():
            icons = json.loads(_packed(source, "icons.json", scratch))
            tiles = []
            for row in rows:
                slug = next((slug for slug in row["slugs"] if slug in icons["icons"]), None)
                row[style] = len(tiles) if slug else ""
                if slug:
                    tiles.append(_render(icons, slug))
            _write_mosaic(folder / f"{style}.webp", tiles, source)
    rows = [row for row in rows if sum(row[style] != "" for style in STYLES) >= 1]
    write_rows(folder / "emoji.csv", rows, ["name", "hexcode", "group", "subgroup", "keywords", *STYLES])
    write_meta(
        folder / "emoji.csv",
        kind="published",
        command=REBUILD,
        source=f"npm {NAMES_SOURCE[0]}@{NAMES_SOURCE[1]}",
        licence=NAMES_SOURCE[3],
        licence_url=NAMES_SOURCE[4],
    )


REBUILD = "splitpoint draw-emoji --rebuild"
_SKIPPED_GROUPS = ("people-body", "component", "flags", "symbols")
_KEPT_SYMBOLS = ("zodiac", "geometric", "warning", "transport-sign", "religion")


def _wanted(entry: dict, labels: dict) -> bool:
    group = labels["groups"].get(str(entry.get("group")), "component")
    if group == "symbols":
        return labels["subgroups"][str(entry["subgroup"])] in _KEPT_SYMBOLS
    return group not in _SKIPPED_GROUPS


def _row(entry: dict, labels: dict) -> dict:
    name = entry["label"].lower().replace("’", "'").replace(":", "")
    slug = "".join(c if c.isalnum() else "-" for c in name.replace("'", ""))
    slug = "-".join(part for part in slug.split("-") if part)
    return {
        "name": name,
        "hexcode": entry["hexcode"],
        "group": labels["groups"][str(entry["group"])],
        "subgroup": labels["subgroups"][str(entry["subgroup"])],
        "keywords": "|".join(entry.get("tags", [])),
        "slugs": [slug, slug.removesuffix("-face"), f"{slug}-face", slug.replace("-", "")],
    }


def _packed(source: tuple, member: str, scratch: str) -> str:
    package, version = source[:2]
    try:
        done = subprocess.run(
            ["npm", "pack", f"{package}@{version}", "--json", "--loglevel=error", "--pack-destination", scratch],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"npm could not fetch {package}@{version}; it needs a connection") from error
    archive = Path(scratch) / json.loads(done.stdout)[0]["filename"].replace("@", "").replace("/", "-")
    with tarfile.open(archive) as packed:
        return packed.extractfile(f"package/{member}").read().decode()


def _render(icons: dict, slug: str) -> np.ndarray:
    try:
        import resvg_py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RuntimeError("the rebuild needs a renderer: pip install resvg_py==0.5.0") from error
    icon = icons["icons"][slug]
    box = [
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{4 * PIXELS}" '
        f'height="{4 * PIXELS}" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, background="white"))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BOX))


def _write_mosaic(path: Path, tiles: list[np.ndarray], source: tuple) -> None:
    package, version, vendor, licence, url = source
    blank = np.full((PIXELS, PIXELS, 3), 255, np.uint8)
    tiles = tiles + [blank] * (-len(tiles) % TILES_PER_ROW)
    grid = np.stack(tiles).reshape(-1, TILES_PER_ROW, PIXELS, PIXELS, 3).swapaxes(1, 2)
    mosaic = grid.reshape(-1, TILES_PER_ROW * PIXELS, 3)
    file = io.BytesIO()
    Image.fromarray(mosaic).save(file, "WEBP", lossless=True, quality=100, method=6)
    write_atomically(path, file.getvalue())
    write_meta(
        path,
        kind="published",
        command=REBUILD,
        source=f"npm {package}@{version}",
        licence=licence,
        licence_url=url,
        attribution=vendor,
        changes=f"rendered at {PIXELS} x {PIXELS} pixels on white, tiled into one picture",
    )


def main() -> None:
    """Say what the data set holds, or make it again."""
    parser = argparse.ArgumentParser(description="The emoji data set of the miniature.")
    parser.add_argument("--rebuild", action="store_true", help="fetch, render and write data/emoji again")
    if parser.parse_args().rebuild:
        rebuild()
        return
    for name in STYLES:
        print(f"{name:10} {len(known_concepts([name]))} concepts, {SOURCES[name][3]}")
    print(f"{len(known_concepts())} concepts in all {len(STYLES)} styles")


if __name__ == "__main__":
    main()
