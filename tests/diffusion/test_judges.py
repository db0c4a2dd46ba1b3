"""The judges: right on real drawings, blind to nonsense input, and not the networks that they judge."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.multimodal import CLIPScore

from splitpoint.diffusion import judges_training
from splitpoint.diffusion.emoji import STYLES, Emoji, default_concepts, load_emoji
from splitpoint.diffusion.judges import (
    EmojiJudge,
    accuracy,
    concept_accuracy,
    load_concept_judge,
    load_mini_clip,
    load_style_judge,
)
from splitpoint.diffusion.judges_training import distort, fit_clip, fit_judge
from splitpoint.diffusion.mini_networks import build_tokenizer, to_pixels
from splitpoint.files import data_path, read_meta

SOME = load_emoji(STYLES, default_concepts()[::5])


def test_the_judge_of_concepts_knows_real_drawings_among_all_concepts():
    judge = load_concept_judge()
    assert judge.labels == default_concepts()
    assert accuracy(judge, SOME, "concepts") > 0.9


def test_the_judge_of_styles_knows_who_drew():
    judge = load_style_judge()
    assert judge.labels == STYLES
    assert accuracy(judge, SOME, "styles") > 0.7


def test_the_likeliest_label_is_the_one_with_the_highest_score():
    judge, images = load_concept_judge(), SOME.images[:20]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        scores = judge(pixels).double()
    share = scores.exp() / scores.exp().sum(1, keepdim=True)
    np.testing.assert_allclose(judge.probabilities(images), share, rtol=1e-3, atol=1e-7)
    assert judge.classify(images) == [judge.labels[row.argmax()] for row in scores]
    assert len(set(judge.classify(images))) > 2


def test_scores_are_made_of_the_features_alone():
    judge, pixels = load_style_judge(), to_pixels(SOME.images[:5])
    with torch.no_grad():
        features = judge.features(pixels)
        torch.testing.assert_close(judge(pixels), features @ judge.head.weight.T + judge.head.bias)
    assert features.shape == (5, judge.widths[-1])


def test_accuracy_is_the_share_named_right():
    class Fixed(EmojiJudge):
        """Says the same of every picture."""

        def classify(self, images):
            return ["red apple"] * len(images)

    shown = load_emoji(["noto", "twemoji", "fluent"], ["red apple", "rocket"])
    assert accuracy(Fixed(["red apple"]), shown, "concepts") == 0.5
    part = Emoji(shown.images[:4], shown.concept[:4], shown.style[:4], shown.concepts, shown.styles)
    assert accuracy(Fixed(["red apple"]), part, "concepts") == 0.75
    assert accuracy(Fixed(["red apple"]), shown, "styles") == 0


def test_concept_accuracy_counts_each_prompt_over_its_own_seeds(monkeypatch):
    drawn = load_emoji(["noto"], ["red apple", "rocket"]).images[[0, 1, 1, 1]]  # one apple for two that were asked for
    monkeypatch.setattr("splitpoint.diffusion.judges.draw", lambda *_: drawn)
    share, each, images = concept_accuracy(None, ["red apple", "rocket"], range(2))
    assert share == 0.75 and each == {"red apple": 0.5, "rocket": 1.0} and images.shape == (2, 2, 64, 64, 3)


def test_the_right_prompt_scores_higher_than_a_wrong_one():
    shown = load_emoji(["noto", "twemoji"], ["birthday cake", "rocket", "octopus"])
    images = torch.from_numpy(shown.images).permute(0, 3, 1, 2)
    metric = CLIPScore(model_name_or_path=load_mini_clip)
    right = metric(images, shown.prompts).item()
    wrong = metric(images, shown.prompts[2:] + shown.prompts[:2]).item()
    assert right > wrong + 5


def test_a_tokenizer_numbers_its_words_the_same_every_time():
    """What the text-image encoder learned of a word belongs to the word's number."""
    vocabulary = read_meta(data_path("models", "judges", "clip.safetensors"))["vocabulary"]
    numbers = build_tokenizer(vocabulary).get_vocab()
    assert all(build_tokenizer(vocabulary).get_vocab() == numbers for _ in range(3))
    model, read = load_mini_clip()
    names = ("bat", "cat face", "chocolate bar", "t-shirt", "honey pot")  # once numbered by chance
    shown = load_emoji(STYLES, names)
    with torch.no_grad():
        text = F.normalize(model.get_text_features(read(text=names)["input_ids"]), dim=1)
        image = F.normalize(model.get_image_features(to_pixels(shown.images)), dim=1)
    own = (image * text[shown.concept]).sum(1).numpy()
    assert all(own[shown.concept == i].mean() > 0.4 for i in range(len(names)))


def test_distortion_keeps_shape_and_range_and_depends_on_its_seed():
    pixels = to_pixels(SOME.images[:6])
    first, again, other = (distort(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == pixels.shape and first.abs().max() <= 1
    torch.testing.assert_close(first, again)
    assert (first - other).abs().mean() > 0.01


def test_a_gentle_distortion_keeps_the_colours():
    flat = torch.tensor([0.8, -0.5, 0.1])[None, :, None, None].expand(8, 3, 64, 64)
    gentle, strong = (distort(flat, torch.Generator().manual_seed(0), gently) for gently in (True, False))
    middle = (slice(None), slice(None), slice(24, 40), slice(24, 40))  # away from what is turned in from outside
    moved = [(seen[middle].mean((2, 3)) - flat[:, :, 0, 0]).abs().mean() for seen in (gentle, strong)]
    assert moved[0] < 0.02 < moved[1]
    picture = to_pixels(SOME.images[:12])
    turned = [
        (distort(picture, torch.Generator().manual_seed(0), gently) - picture).square().mean()
        for gently in (True, False)
    ]
    assert turned[0] < 0.8 * turned[1]


@pytest.mark.parametrize("target", ["concepts", "styles"])
def test_a_judge_learns_to_tell_apart(target):
    few = load_emoji(["noto", "openmoji"], ["rocket", "red apple"])
    judge = fit_judge(few, target, 40, batch=8, widths=(4, 4, 4, 8))
    assert judge.labels == getattr(few, target) and not judge.training
    assert accuracy(judge, few, target) == 1


def test_a_text_image_encoder_learns_which_prompt_is_which():
    few = load_emoji(["noto", "openmoji"], ["rocket", "red apple", "octopus"])
    model = fit_clip(few, 25, batch=6)
    vocabulary = judges_training.clip_vocabulary(few.concepts)
    read = judges_training.MiniProcessor(build_tokenizer(vocabulary))
    with torch.no_grad():
        text = F.normalize(model.get_text_features(read(text=few.concepts)["input_ids"]), dim=1)
        image = F.normalize(model.get_image_features(to_pixels(few.images)), dim=1)
    assert not model.training and ((image @ text.T).argmax(1).numpy() == few.concept).mean() > 0.6


def test_a_saved_judge_judges_as_the_trained_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    trained = EmojiJudge(["noto", "fluent"], (4, 4, 4, 8)).eval()
    judges_training.save_judge(trained, "styles", 7, 3, labels=trained.labels, widths=trained.widths)
    load_style_judge.cache_clear()
    try:
        again = load_style_judge()
        np.testing.assert_allclose(
            again.probabilities(SOME.images[:4]), trained.probabilities(SOME.images[:4]), atol=2e-3
        )
        assert again.labels == trained.labels
        assert read_meta(tmp_path / "data/models/judges/styles.safetensors")["command"].endswith(
            "--styles --steps 7 --seed 3"
        )
    finally:
        load_style_judge.cache_clear()


@pytest.mark.parametrize("words", [["--concepts", "--steps", "0"], ["--styles", "--steps", "-5"], ["--report"]])
def test_a_command_that_would_learn_nothing_changes_no_file(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPLITPOINT_ROOT", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["judges_training", *words])
    with pytest.raises(SystemExit) as end:
        judges_training.main()
    assert end.value.code != 0 and list(tmp_path.iterdir()) == [] and words[-1] in capsys.readouterr().err


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="weather"):
        fit_judge(SOME, "weather", 1)
    with pytest.raises(ValueError, match="steps=0"):
        fit_judge(SOME, "styles", 0)
    with pytest.raises(ValueError, match="batch=0"):
        fit_clip(SOME, 1, batch=0)
    with pytest.raises(ValueError, match=r"\(2, 32, 32, 3\)"):
        load_style_judge().classify(np.zeros((2, 32, 32, 3), np.uint8))
