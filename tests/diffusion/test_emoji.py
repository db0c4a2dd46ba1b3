"""The data set: openly licensed, complete, the same concept in the same place for every vendor."""

import shutil

import numpy as np
import pytest

from splitpoint.diffusion import emoji
from splitpoint.diffusion.emoji import (
    SOURCES,
    STYLES,
    default_concepts,
    emoji_table,
    known_concepts,
    load_emoji,
    unseen_concepts,
)
from splitpoint.files import data_path, read_meta


def test_every_style_states_an_open_licence_and_its_source():
    assert len(STYLES) >= 5
    for style in STYLES:
        meta = read_meta(data_path("emoji", f"{style}.webp"))
        package, version, vendor, licence, url = SOURCES[style]
        assert meta["licence"] == licence and licence in {"MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0"}
        assert meta["source"] == f"npm {package}@{version}" and meta["attribution"] == vendor
        assert url.startswith("https://")


def test_share_alike_images_keep_a_file_of_their_own_and_all_fit_the_budget():
    files = [path for path in data_path("emoji").iterdir() if path.suffix == ".webp"]
    assert len(files) == len(STYLES)
    assert sum(path.stat().st_size for path in files) < 9e6


def test_images_are_64_pixels_on_white_in_the_order_asked_for():
    shown = load_emoji(["twemoji", "noto"], ["rocket", "birthday cake"])
    assert shown.images.shape == (4, 64, 64, 3) and shown.images.dtype == np.uint8
    assert shown.prompts == ["rocket", "rocket", "birthday cake", "birthday cake"]
    assert [shown.styles[i] for i in shown.style] == ["twemoji", "noto"] * 2
    assert (shown.images[:, 0, 0] == 255).all()
    assert 20 < np.abs(shown.images[0].astype(float) - shown.images[2]).mean()


def test_a_concept_looks_more_like_itself_across_vendors_than_like_another():
    shown = load_emoji(STYLES, ["red apple", "umbrella", "banana"])
    small = shown.images.reshape(len(shown), 8, 8, 8, 8, 3).mean((2, 4)).reshape(len(shown), -1)
    apart = np.linalg.norm(small[:, None] - small[None], axis=-1)
    same = (shown.concept[:, None] == shown.concept) & ~np.eye(len(shown), dtype=bool)
    assert apart[same].mean() < apart[shown.concept[:, None] != shown.concept].mean()


def test_the_concepts_of_the_miniature_were_drawn_by_every_vendor():
    concepts = default_concepts()
    assert len(concepts) == len(set(concepts)) >= 120 and "birthday cake" in concepts
    assert set(concepts) <= set(known_concepts())
    assert len(load_emoji(concepts=concepts)) == len(concepts) * len(STYLES)
    assert len({row["group"] for row in emoji_table() if row["name"] in concepts}) >= 6


def test_known_concepts_were_drawn_by_every_one_of_the_styles():
    both = known_concepts(["noto", "blob"])
    assert both == tuple(row["name"] for row in emoji_table() if None not in (row["noto"], row["blob"]))
    assert 0 < len(known_concepts()) < len(both) < len(known_concepts("noto"))


def test_a_mosaic_gives_its_tiles_back(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    tiles = list(np.stack(np.indices((35, 64, 64)), axis=-1).astype(np.uint8))  # number, row and column as colours
    emoji._write_mosaic(tmp_path / "data" / "emoji" / "noto.webp", tiles, SOURCES["noto"])
    emoji._tiles.cache_clear()
    back = emoji._tiles("noto")
    emoji._tiles.cache_clear()
    assert np.array_equal(back[:35], tiles) and len(back) == 64 and (back[35:] == 255).all()


def test_a_style_that_never_drew_a_concept_is_skipped():
    lonely = next(row["name"] for row in emoji_table() if row["blob"] is None and row["noto"] is not None)
    assert [load_emoji(concepts=[lonely]).styles[i] for i in load_emoji(["noto", "blob"], [lonely]).style] == ["noto"]


@pytest.mark.parametrize(
    ("styles", "concepts", "says"),
    [
        (["apple"], None, "apple"),
        ([], None, "styles is empty"),
        (["noto"], [], "concepts is empty"),
        (["noto"], ["birthday cke"], "birthday cake"),
    ],
)
def test_bad_requests_name_what_is_wrong_and_what_is_near(styles, concepts, says):
    with pytest.raises(ValueError, match=says):
        load_emoji(styles, concepts)


def test_a_damaged_mosaic_is_refused(tmp_path, monkeypatch):
    shutil.copytree(data_path("emoji"), tmp_path / "data" / "emoji")
    file = tmp_path / "data" / "emoji" / "noto.webp"
    file.write_bytes(file.read_bytes()[:-1000])
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    emoji._tiles.cache_clear()
    with pytest.raises(ValueError, match="noto.webp"):
        load_emoji(["noto"], ["rocket"])
    emoji._tiles.cache_clear()


def test_nothing_is_trained_on_what_is_kept_unseen():
    from splitpoint.diffusion.mini_training import other_emoji
    from splitpoint.diffusion.personalize import split_concepts, vendor_pictures

    unseen, known = set(unseen_concepts()), set(default_concepts())
    others = set(other_emoji(STYLES, default_concepts()).concepts)
    assert len(unseen) > 100 and not unseen & known and not others & (known | unseen)
    assert len(others) + len(known) + len(unseen) == len(emoji_table())
    shown, held = split_concepts(default_concepts())
    _, prompts = vendor_pictures("noto", shown, 0.5)
    assert not set(prompts) & (unseen | set(held)) and set(shown) < set(prompts)
