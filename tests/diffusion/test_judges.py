"""The judges: right on real drawings, blind to nonsense input, and not the networks that they judge."""

import numpy as np
import pytest
import torch
from torchmetrics.multimodal import CLIPScore

from splitpoint.diffusion.emoji import STYLES, load_emoji
from splitpoint.diffusion.judges import (
    EmojiClassifier,
    accuracy,
    distort,
    fit_classifier,
    fit_clip,
    load_concept_classifier,
    load_mini_clip,
    load_style_classifier,
)
from splitpoint.diffusion.mini import default_concepts, to_pixels

SOME = load_emoji(STYLES, default_concepts()[::5])


def test_the_judge_of_concepts_knows_real_drawings_among_all_concepts():
    judge = load_concept_classifier()
    assert judge.labels == default_concepts()
    assert accuracy(judge, SOME, "concepts") > 0.9


def test_the_judge_of_styles_knows_who_drew():
    judge = load_style_classifier()
    assert judge.labels == STYLES
    assert accuracy(judge, SOME, "styles") > 0.7


def test_probabilities_sum_to_one_and_features_have_unit_length():
    judge = load_concept_classifier()
    np.testing.assert_allclose(judge.probabilities(SOME.images[:5]).sum(1), 1, rtol=1e-5)


def test_the_right_prompt_scores_higher_than_a_wrong_one():
    shown = load_emoji(["noto", "twemoji"], ["birthday cake", "rocket", "octopus"])
    images = torch.from_numpy(shown.images).permute(0, 3, 1, 2)
    metric = CLIPScore(model_name_or_path=load_mini_clip)
    right = metric(images, shown.prompts).item()
    wrong = metric(images, shown.prompts[2:] + shown.prompts[:2]).item()
    assert right > wrong + 5


def test_distortion_keeps_shape_and_range_and_depends_on_its_seed():
    pixels = to_pixels(SOME.images[:6])
    first, again, other = (distort(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == pixels.shape and first.abs().max() <= 1
    torch.testing.assert_close(first, again)
    assert (first - other).abs().mean() > 0.01


def test_training_runs_and_ends_in_evaluation_mode():
    few = load_emoji(["noto", "twemoji"], ["rocket", "red apple"])
    for target, labels in (("concepts", few.concepts), ("styles", few.styles)):
        model = fit_classifier(few, target, 0.005, widths=(4, 4, 4, 8), progress=False)
        assert isinstance(model, EmojiClassifier) and model.labels == labels and not model.training
    assert not fit_clip(few, 0.005, batch=4, progress=False).training


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="weather"):
        fit_classifier(SOME, "weather", 1.0)
    with pytest.raises(ValueError, match=r"\(2, 32, 32, 3\)"):
        load_style_classifier().classify(np.zeros((2, 32, 32, 3), np.uint8))
