from dataclasses import asdict
from threading import Event

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPProcessor

from splitpoint.diffusion import accuracy
from splitpoint.diffusion.accuracy import (
    MINI_USERS,
    SCHEDULES,
    Calibration,
    calibrate,
    distances_between_users,
    load_calibration,
    measure_pai,
    mini_prompts,
    noise_seed,
    real_pictures,
    save_calibration,
    summarize_pai,
    text_scores,
)
from splitpoint.diffusion.hybrid import GenerationCancelled, HybridPipeline, decode
from splitpoint.diffusion.judges import (
    Judges,
    PooledCLIP,
    deep_feature_distance,
    load_clip,
    mini_judges,
    stable_diffusion_judges,
)
from splitpoint.diffusion.users import load_users
from splitpoint.files import data_path, read_meta

from .tiny_pipeline import make_pipeline, make_tokenizer, save_adapter

USERS, SPLITS = ["ann", "bob", "cyd"], [0, 2, 4]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)  # cosines above 0: the score is cut there
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    PooledCLIP(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(
        size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16}, do_center_crop=False
    )
    CLIPProcessor(images, make_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judges(clip_folder):
    loaded = load_clip(clip_folder)
    torch.manual_seed(1)
    layer = torch.nn.Conv2d(3, 8, 3, 2)
    return Judges(
        "tiny",
        lambda: loaded,
        deep_feature_distance(lambda pictures: [pictures, layer(pictures)]),
        lambda pictures: [USERS[int(x.mean() * 100) % 3] for x in pictures],
    )


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    folder, maker = tmp_path_factory.mktemp("loras"), make_pipeline()
    edge, users = load_users(make_pipeline(), [save_adapter(maker, folder / name, i) for i, name in enumerate(USERS)])
    return HybridPipeline(edge, users, num_steps=4, guidance_scale=2.0)


@pytest.fixture
def measure(hybrid, judges):
    def run(prompts=("cat", "dog"), users=USERS, splits=SPLITS, seeds=(0, 1), **more):
        return measure_pai(
            prompts,
            users,
            splits,
            seeds,
            **{"hybrid": hybrid, "judges": judges, "calibration": Calibration(0.5, 0.02), **more},
        )

    return run


def test_the_table_holds_every_sample_and_its_index_follows_from_its_parts(measure, hybrid):
    table = measure()
    assert len(table) == 2 * 2 * 3 * 3 and not table.isna().any().any()
    assert not table.duplicated(["prompt", "user", "seed", "split_point"]).any()
    apart = table.groupby(["prompt", "seed", "split_point"])["distance"].transform("mean")
    np.testing.assert_allclose(table["pai"], Calibration(0.5, 0.02).pai(table["text_score"], apart), rtol=1e-4)
    assert (table["style_ok"] == (table["style"] == table["user"])).all()
    assert (table.query("split_point == 0")["distance"] == 0).all()
    assert table.groupby("split_point")["distance"].mean().is_monotonic_increasing
    levels = hybrid.noise_levels()
    np.testing.assert_allclose(table["sigma"], levels[4 - table["split_point"].to_numpy()], rtol=1e-4)


def test_samples_are_the_pictures_that_hybrid_inference_draws(measure, hybrid, judges):
    row = measure().query("prompt == 'dog' and user == 'bob' and seed == 1 and split_point == 2").iloc[0]
    output = hybrid.generate("dog", "bob", 2, noise_seed("dog", 1))
    score = text_scores(decode(hybrid.pipeline, output.latents), ["dog"], judges.clip)[0]
    assert row["text_score"] == pytest.approx(score, abs=1e-4) and row["noise_seed"] == noise_seed("dog", 1)
    assert len({noise_seed(prompt, seed) for prompt in ("cat", "dog") for seed in (0, 1)}) == 4


@pytest.mark.slow
def test_an_interrupted_measurement_goes_on_to_the_same_table(measure, tmp_path, monkeypatch):
    whole = measure(path=tmp_path / "whole.csv")
    stop, drawn, compare = Event(), [], HybridPipeline.compare

    def compare_and_count(self, prompt, *arguments, **more):
        drawn.append(prompt)
        if len(drawn) == 3:
            stop.set()
        return compare(self, prompt, *arguments, **more)

    monkeypatch.setattr(HybridPipeline, "compare", compare_and_count)
    with pytest.raises(GenerationCancelled):
        measure(path=tmp_path / "broken.csv", cancel=stop)
    assert not (tmp_path / "broken.csv").exists()
    resumed = measure(path=tmp_path / "broken.csv")
    assert drawn == ["cat", "dog", "cat", "cat", "dog"]
    pd.testing.assert_frame_equal(resumed, whole)
    assert (tmp_path / "broken.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    pd.testing.assert_frame_equal(measure(path=tmp_path / "whole.csv"), whole)
    assert len(drawn) == 5 and not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
def test_a_part_that_was_cut_or_changed_is_measured_again(measure, tmp_path, monkeypatch, capsys):
    whole = measure(path=tmp_path / "whole.csv")
    monkeypatch.setattr(accuracy, "write_meta", lambda *_, **__: 1 / 0)  # as if killed when all cases were there
    with pytest.raises(ZeroDivisionError):
        measure(path=tmp_path / "broken.csv")
    monkeypatch.undo()
    parts = sorted(tmp_path.glob("broken.parts/*/*.json"))
    kept = {part: part.read_bytes() for part in parts}
    assert len(parts) == 4
    content = kept[parts[0]]
    for damaged in (content[:-9], content.replace(b"0.", b"1."), b"", b"[]\n"):
        (tmp_path / "broken.csv").unlink()
        parts[0].parent.mkdir(parents=True, exist_ok=True)
        for part in parts:
            part.write_bytes(kept[part])
        parts[0].write_bytes(damaged)
        pd.testing.assert_frame_equal(measure(path=tmp_path / "broken.csv"), whole)
        assert f"{parts[0].name} of broken.parts was cut off or changed" in capsys.readouterr().out


def test_another_measurement_under_the_same_name_is_refused(measure, tmp_path):
    measure(prompts="cat", seeds=0, path=tmp_path / "pai.csv")
    with pytest.raises(ValueError, match=r"pai.csv holds another measurement \(other split_points\)"):
        measure(prompts="cat", seeds=0, splits=[0, 4], path=tmp_path / "pai.csv")
    with pytest.raises(ValueError, match="calibration"):
        measure(prompts="cat", seeds=0, calibration=Calibration(0.4, 0.02), path=tmp_path / "pai.csv")
    maker = make_pipeline()
    users = [save_adapter(maker, tmp_path / name, 9 + i) for i, name in enumerate(USERS)]
    other = HybridPipeline(*load_users(make_pipeline(), users), num_steps=4, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"\(other weights\)"):
        measure(prompts="cat", seeds=0, hybrid=other, path=tmp_path / "pai.csv")


def test_a_place_that_cannot_be_written_is_refused_before_any_picture(measure, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="path=.* cannot be written"):
        measure(path=tmp_path / "file" / "pai.csv", cancel=lambda: pytest.fail("began to draw"))


def test_pictures_may_be_scored_against_another_text(measure):
    plain, described = measure(seeds=0), measure(seeds=0, describe=lambda prompt, user: f"a {prompt} of {user}")
    assert (plain["distance"] == described["distance"]).all()
    assert (plain["text_score"] != described["text_score"]).mean() > 0.9
    same = measure(seeds=0, describe=lambda prompt, user: {"ann": prompt}.get(user, "cow"))
    own = plain["user"] == "ann"
    assert (same["text_score"] == plain["text_score"])[own].all()
    assert (same["text_score"] != plain["text_score"])[~own].mean() > 0.9


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(prompts=[]), "prompts is empty"),
        (dict(seeds=[1, 1]), "seeds=.* holds one value twice"),
        (dict(seeds=[1, 1.5]), "seeds=1.5 is not a whole number"),
        (dict(users=["ann"]), "at least 2"),
        (dict(users=["ann", "zoe"]), "user='zoe' is unknown"),
        (dict(splits=[0, 5]), r"split_points=5 is outside \[0, 4\]"),
        (dict(splits=[-1]), "split_points=-1"),
        (dict(prompts=["cat", ""]), "prompts=''"),
    ],
)
def test_bad_measurements_are_refused(measure, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(**arguments)


def test_the_index_keeps_the_released_floor_and_counts_real_pictures_as_whole():
    calibration = Calibration(0.8, 0.4)
    assert calibration.pai(0.8, 0.0) == pytest.approx(1 / (1 + np.exp(3)))  # as 30 * (0 - 0.1) in the released index
    assert calibration.pai(0.8, 0.4) == pytest.approx(1 / (1 + np.exp(-3)))
    assert calibration.pai(0.4, 0.2) == pytest.approx(0.25)
    released = Calibration(1 / 3, 0.2)
    assert (released.steepness, released.midpoint) == (pytest.approx(30), pytest.approx(0.1))
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="real_distance="):
            Calibration(0.8, bad)


def test_calibration_uses_real_pictures_and_survives_its_file(judges, tmp_path):
    torch.manual_seed(2)
    real, prompts = torch.rand(3, 2, 3, 16, 16), ["cat", "dog", "cow"]
    found = calibrate(judges, real, prompts)
    assert found.real_distance == pytest.approx(judges.distance(real[:, 0], real[:, 1]).mean().item(), rel=1e-5)
    scores = text_scores(real.flatten(0, 1), ["cat", "cat", "dog", "dog", "cow", "cow"], judges.clip)
    assert found.real_score == pytest.approx(scores.mean())
    path = save_calibration(found, tmp_path / "c.json", command="here", settings={})
    assert load_calibration(path) == found
    path.write_text(path.read_text().replace("0.", "0.1"))
    with pytest.raises(ValueError, match="checksum"):
        load_calibration(path)


def test_text_score_is_the_cosine_of_the_encoders_features(judges):
    torch.manual_seed(3)
    pictures, prompts = torch.rand(4, 3, 16, 16), ["cat", "dog", "cow", "owl"]
    model, processor = judges.clip()
    inputs = processor(
        text=prompts, images=[(p * 255).round().to(torch.uint8) for p in pictures], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        image = model.get_image_features(inputs["pixel_values"])
        text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    expected = torch.cosine_similarity(image, text).clamp(min=0)
    np.testing.assert_allclose(text_scores(pictures, prompts, judges.clip), expected, atol=1e-5)
    with pytest.raises(ValueError, match="prompts has length 1"):
        text_scores(pictures, ["cat"], judges.clip)


def test_distances_between_users_are_means_over_the_others():
    pictures = torch.tensor([0.0, 1.0, 3.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 3, 4, 4)
    apart = distances_between_users(pictures, lambda a, b: (a - b).abs().mean((1, 2, 3)))
    np.testing.assert_allclose(apart, [[2.0, 1.5, 2.5]])
    with pytest.raises(ValueError, match="at least 2"):
        distances_between_users(pictures[:, :1], lambda a, b: a)


def test_deep_feature_distance_is_symmetric_zero_on_equals_and_blind_to_scale():
    distance = deep_feature_distance(lambda pictures: [pictures, pictures.flip(1) + 0.1])
    torch.manual_seed(4)
    one, other = torch.rand(5, 3, 8, 8), torch.rand(5, 3, 8, 8)
    assert (distance(one, one) == 0).all() and (distance(one, other) > 0).all()
    torch.testing.assert_close(distance(one, other), distance(other, one))
    plain = deep_feature_distance(lambda pictures: [pictures])
    torch.testing.assert_close(plain(one, other), plain(one * 2, other), rtol=1e-4, atol=1e-6)
    cosines = torch.cosine_similarity(one, other, dim=1)  # of the channels at each place
    torch.testing.assert_close(plain(one, other), (2 - 2 * cosines).mean((1, 2)))


def test_summary_resamples_whole_prompts():
    rows = [
        {"prompt": prompt, "user": user, "split_point": split, "pai": split / 10 + level}
        for prompt, level in (("a", 0.0), ("b", 0.2))
        for user in "xyz"
        for split in (0, 5)
    ]
    summary = summarize_pai(pd.DataFrame(rows))
    np.testing.assert_allclose(summary["mean"], [0.1, 0.6])
    np.testing.assert_allclose(summary["low"], [0.0, 0.5])  # both draws may be prompt a
    np.testing.assert_allclose(summary["high"], [0.2, 0.7])
    assert summary["samples"].tolist() == [6, 6] and summary["prompts"].tolist() == [2, 2]
    with pytest.raises(ValueError, match="value='style_ok' is unknown; there are: prompt"):
        summarize_pai(pd.DataFrame(rows), "style_ok")


def test_the_interval_of_a_summary_is_the_one_that_holds_95_of_100_means():
    levels = np.random.default_rng(0).normal(0, 1, 400)
    table = pd.DataFrame({"prompt": np.arange(400), "split_point": 0, "pai": levels})
    summary = summarize_pai(table).iloc[0]
    half = 1.96 * levels.std() / 20
    assert (summary["low"], summary["high"]) == pytest.approx((levels.mean() - half, levels.mean() + half), abs=0.008)


def test_the_stable_diffusion_judges_load_and_resize(clip_folder, monkeypatch):
    import torchmetrics.image.lpip as lpip

    seen = {}

    class StandIn:
        def __init__(self, **settings):
            seen.update(settings)

        def __call__(self, one, other):
            seen["shape"] = tuple(one.shape)
            return (one - other).abs().mean((1, 2, 3))

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", StandIn)
    judges = stable_diffusion_judges(clip_folder)
    one, other = torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.5)
    torch.testing.assert_close(judges.distance(one, other), torch.tensor([0.5, 0.5]))
    assert seen == {"net_type": "alex", "reduction": "none", "normalize": True, "shape": (2, 3, 256, 256)}
    assert 0 <= text_scores(one, ["cat", "dog"], judges.clip)[0] <= 1


def test_the_committed_measurement_is_complete_and_follows_from_its_calibration():
    table, calibration = pd.read_csv(data_path("quality", "pai_mini.csv")), load_calibration()
    settings = read_meta(data_path("quality", "pai_mini.csv"))["settings"]
    assert settings["calibration"] == asdict(calibration)
    assert set(table["prompt"]) == set(mini_prompts()) and set(table["user"]) == set(MINI_USERS)
    cells = table.groupby(["prompt", "user", "seed", "split_point"]).size()
    assert len(cells) == len(table) == 20 * 4 * table["seed"].nunique() * 11 and table["seed"].nunique() >= 2
    apart = table.groupby(["prompt", "seed", "split_point"])["distance"].transform("mean")
    np.testing.assert_allclose(table["pai"], calibration.pai(table["text_score"], apart), rtol=1e-3, atol=1e-5)
    curve = summarize_pai(table)["mean"]
    assert curve.is_monotonic_increasing and curve.iloc[0] < 0.1


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_committed_measurements_under_other_schedules_are_complete(name):
    path = data_path("quality", "schedules", f"{name}.csv")
    table, settings = pd.read_csv(path), read_meta(path)["settings"]
    main = read_meta(data_path("quality", "pai_mini.csv"))["settings"]
    assert settings["weights"] == main["weights"] and settings["calibration"] == main["calibration"]
    assert len(table) == 20 * 4 * 11 and set(table["num_steps"]) == {SCHEDULES[name]["num_steps"]}
    rise = summarize_pai(table)["mean"].diff().dropna()
    assert (rise.iloc[:-1] > 0).all() and rise.iloc[-1] > -0.01  # one seed: at the end the curve is flat


def test_the_committed_judges_agree_with_the_calibration():
    real = real_pictures(MINI_USERS, mini_prompts()[:5])
    judges, calibration = mini_judges(), load_calibration()
    found = calibrate(judges, real, mini_prompts()[:5])
    assert found.real_score == pytest.approx(calibration.real_score, rel=0.2)
    assert found.real_distance == pytest.approx(calibration.real_distance, rel=0.3)
    assert judges.distance(real[:, 0], real[:, 0]).max() == 0
    assert set(judges.style(real[0])) <= {"noto", "twemoji", "openmoji", "fluent", "blob", "emojione"}
    with pytest.raises(ValueError, match="unknown"):
        real_pictures(MINI_USERS, ["birthday cake", "quasar"])
