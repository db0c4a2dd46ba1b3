"""Personal models: small, each its own, off without a trace, and open to a reader's own pictures."""

import csv

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from splitpoint.diffusion import personalize as personal
from splitpoint.diffusion.emoji import default_concepts, load_emoji
from splitpoint.diffusion.mini import draw, load_mini
from splitpoint.diffusion.mini_networks import build_mini, token_ids
from splitpoint.diffusion.personalize import (
    _picture,
    attach_user,
    personalize,
    split_concepts,
    style_accuracy,
    train_user,
    user_path,
    vendor_pictures,
)
from splitpoint.diffusion.users import ADAPTER_FILE, adapter_name, load_users, mini_users
from splitpoint.files import read_meta, write_meta

from .test_mini import SMALLEST


@pytest.fixture
def pipe():
    return load_mini()


def test_at_least_four_users_small_and_with_the_licence_of_what_they_saw():
    assert len(mini_users()) >= 4
    for style in mini_users():
        file = user_path(style) / ADAPTER_FILE
        meta = read_meta(file)
        assert file.stat().st_size < 1.5e6 and meta["kind"] == "trained" and meta["licence"]
        assert all("lora" in key for key in load_file(file))


def test_users_differ_and_leave_no_trace_when_off(pipe):
    shared = draw(pipe, "rocket", [3], 5)
    own = []
    for style in mini_users()[:2]:
        attach_user(pipe, style)
        own.append(draw(pipe, "rocket", [3], 5))
    pipe.disable_lora()
    np.testing.assert_array_equal(draw(pipe, "rocket", [3], 5), shared)
    for a, b in ((own[0], shared), (own[1], shared), (own[0], own[1])):
        assert np.abs(a.astype(int) - b).mean() > 1


@pytest.mark.slow
def test_a_user_pulls_the_images_towards_its_own_style(pipe):
    prompts = ["rocket", "red apple", "birthday cake", "guitar", "umbrella", "octopus", "tulip", "pizza"]
    before = style_accuracy(pipe, "openmoji", prompts, num_steps=10)
    attach_user(pipe, "openmoji")
    assert style_accuracy(pipe, "openmoji", prompts, num_steps=10) >= max(0.5, before)


@pytest.mark.slow
def test_a_saved_model_is_as_strong_as_the_one_that_was_trained(tmp_path, pipe):
    shared = draw(pipe, "rocket", [3], 3).astype(int)
    personalize(
        [np.zeros((64, 64, 3), np.uint8)],
        ["rocket"],
        pipe,
        tmp_path / "dark",
        rank=2,
        learning_rate=0.2,
        batch=4,
        steps=6,
    )
    mine, other = draw(pipe, "rocket", [3], 3), load_mini()
    attach_user(other, tmp_path / "dark")
    again = draw(other, "rocket", [3], 3)
    assert 20 * np.abs(again - mine.astype(int)).mean() < np.abs(mine - shared).mean()


@pytest.mark.slow
def test_a_tenth_of_the_prompts_is_left_out_in_training(pipe):
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2].detach()))
    personalize([np.zeros((64, 64, 3), np.uint8)], ["rocket"], pipe, rank=1, batch=128, steps=1)
    hook.remove()
    with torch.no_grad():
        empty = pipe.text_encoder(token_ids(pipe.tokenizer, [""])).last_hidden_state
    assert 0.03 < (torch.cat(seen) == empty).all((1, 2)).float().mean() < 0.2


@pytest.mark.slow
def test_what_is_learned_without_a_prompt_may_be_other_peoples_pictures(pipe, monkeypatch):
    seen, empty = [], pipe.text_encoder(token_ids(pipe.tokenizer, [""])).last_hidden_state
    monkeypatch.setattr(
        personal,
        "denoising_loss",
        lambda unet, scheduler, latents, contexts, generator: (
            seen.append((latents.detach(), (contexts == empty).all((1, 2)))) or unet.conv_in(latents).square().mean()
        ),
    )
    dark, light = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    personalize([dark], ["rocket"], pipe, unprompted=[light], rank=1, batch=256, steps=1)
    ((latents, without_prompt),) = seen
    other = latents.flatten(1).mean(1)  # dark and light pictures lie far apart
    lit = (other - other[~without_prompt].mean()).abs() > (other - other[without_prompt].mean()).abs()
    assert torch.equal(lit, without_prompt) and 0.2 < without_prompt.float().mean() < 0.4


def test_strength_multiplies_what_was_trained(tmp_path, pipe):
    found = []
    for strength in (1, 2):
        out = tmp_path / f"times_{strength}"
        personalize(
            [np.zeros((64, 64, 3), np.uint8)], ["rocket"], pipe, out, rank=1, batch=2, steps=1, strength=strength
        )
        found.append(load_file(out / ADAPTER_FILE))
        pipe.delete_adapters(adapter_name(out.name))
    for key, value in found[0].items():
        times = 2 if ("lora_B" in key or "lora.up" in key) else 1
        torch.testing.assert_close(found[1][key].float(), times * value.float(), rtol=2e-3, atol=1e-6)
    assert any("lora_B" in key or "lora.up" in key for key in found[0])


def test_pictures_are_padded_to_a_square_on_white_not_cut():
    page = _picture("images", Image.new("RGBA", (90, 30), (255, 0, 0, 255)))
    assert page.shape == (64, 64, 3)
    assert (page[[0, 10, 53, 63]] == 255).all() and (page[32] == [255, 0, 0]).all()


def test_a_long_strip_is_made_smaller_before_it_is_padded(monkeypatch):
    made, new = [], Image.new
    monkeypatch.setattr(
        personal.Image, "new", lambda mode, size, *colour: made.append(size) or new(mode, size, *colour)
    )
    strip = np.zeros((1, 20_000, 3), np.uint8)
    assert _picture("images", strip).shape == (64, 64, 3)
    assert max(wide * high for wide, high in made) <= 1024**2


def test_a_reader_can_bring_pictures_of_any_size(tmp_path, pipe):
    pictures = [Image.new("RGBA", (90, 40), (255, 0, 0, 128)), np.full((30, 30, 3), 200, np.uint8)]
    personalize(pictures, ["rocket", "a red apple"], pipe, tmp_path / "reader", steps=2, rank=2)
    mine = draw(pipe, "rocket", [3], 3)
    other = load_mini()
    assert attach_user(other, tmp_path / "reader") == adapter_name("reader")
    assert np.abs(draw(other, "rocket", [3], 3).astype(int) - mine).mean() < 1


@pytest.mark.parametrize(
    ("images", "prompts", "more", "says"),
    [
        ([], [], {}, "images has 0"),
        ([Image.new("RGB", (8, 8))], ["a", "b"], {}, "1 entries and prompts has 2"),
        ([Image.new("RGB", (8, 8))], [" "], {}, "empty prompt"),
        ([Image.new("RGB", (8, 8))], ["rocket"], {"rank": 0}, "rank=0"),
        ([Image.new("RGB", (8, 8))], ["rocket"], {"rank": 2.5}, "rank=2.5"),
        ([Image.new("RGB", (8, 8))], ["rocket"], {"out": __file__}, "is not a folder that can be written"),
        ([Image.new("RGB", (8, 8))], ["rocket"], {"steps": 0}, "steps=0"),
        ([Image.new("RGB", (8, 8))], ["rocket"], {"learning_rate": float("nan")}, "learning_rate=nan"),
        ([Image.new("RGB", (8, 8))], ["rocket"], {"strength": -1}, "strength=-1"),
        ([Image.new("RGB", (8, 8))], ["rocket"], {"batch": 0}, "batch=0"),
        (["a.png"], ["rocket"], {}, "holds a str"),
        ([Image.new("RGB", (8, 8))], ["rocket"], {"unprompted": []}, "unprompted is empty"),
        ([Image.new("RGB", (8, 8))], ["rocket"], {"unprompted": ["a.png"]}, "unprompted holds a str"),
    ],
)
def test_bad_requests_are_refused(pipe, images, prompts, more, says):
    before = set(getattr(pipe.unet, "peft_config", {}))
    with pytest.raises(ValueError, match=says):
        personalize(images, prompts, pipe, **{"steps": 1, **more})
    assert set(getattr(pipe.unet, "peft_config", {})) == before  # refused before anything is changed


def test_unknown_damaged_and_foreign_users_are_refused(tmp_path, pipe):
    with pytest.raises(ValueError, match="nobody"):
        attach_user(pipe, "nobody")
    with pytest.raises(ValueError, match="apple"):
        train_user("apple")
    with pytest.raises(ValueError, match="not a LoRA for this model"):
        attach_user(build_mini(SMALLEST), mini_users()[0])
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in user_path(mini_users()[0]).iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / ADAPTER_FILE).write_bytes((damaged / ADAPTER_FILE).read_bytes()[:-9])
    with pytest.raises(ValueError, match="checksum"):
        attach_user(pipe, damaged)


def test_a_vendors_pictures_hold_their_share_of_others_and_nothing_held_out():
    kept, held = split_concepts(default_concepts())
    images, prompts = vendor_pictures("noto", kept, 0.3)
    other = [prompt not in kept for prompt in prompts]
    assert len(images) == len(prompts) and np.mean(other) == pytest.approx(0.3, abs=0.03)
    assert not set(held) & set(prompts) and set(kept) <= set(prompts)
    assert vendor_pictures("noto", kept, 0)[1] == list(kept)
    for place in (0, len(images) - 1):
        np.testing.assert_array_equal(images[place], load_emoji(["noto"], [prompts[place]]).images[0])


def test_held_out_concepts_are_held_out_and_stay_the_same(pipe):
    kept, held = split_concepts(pipe.concepts)
    assert not set(kept) & set(held) and len(kept) + len(held) == len(pipe.concepts)
    assert 0.1 < len(held) / len(pipe.concepts) < 0.2
    assert all(read_meta(user_path(style) / ADAPTER_FILE)["held_out_concepts"] == held for style in mini_users())


@pytest.mark.parametrize("style", ["noto", "twemoji", "openmoji", "fluent"])
def test_every_layer_of_a_users_file_is_loaded(pipe, style):
    name = attach_user(pipe, style)
    loaded = get_peft_model_state_dict(pipe.unet, adapter_name=name)
    saved = {key.removeprefix("unet."): value for key, value in load_file(user_path(style) / ADAPTER_FILE).items()}
    assert set(loaded) == set(saved)
    assert all(torch.equal(loaded[key].half(), saved[key]) for key in saved)


def test_a_file_in_two_namings_is_refused_instead_of_loaded_by_half(tmp_path, pipe):
    state = load_file(user_path("noto") / ADAPTER_FILE)
    mixed = {
        key.replace("lora_A", "lora.down").replace("lora_B", "lora.up") if "attn" in key else key: value
        for key, value in state.items()
    }
    save_file(mixed, tmp_path / ADAPTER_FILE)
    write_meta(tmp_path / ADAPTER_FILE, kind="trained", command="here")
    for load in (lambda: load_users(pipe, {"half": tmp_path}), lambda: attach_user(pipe, tmp_path)):
        with pytest.raises(ValueError, match="142 tensors of which"):
            load()
        assert not {"half", adapter_name(tmp_path.name)} & set(
            getattr(pipe.unet, "peft_config", {})
        )  # nothing of it is left behind


def test_a_report_of_one_user_keeps_what_was_measured_of_others(tmp_path, monkeypatch, pipe):
    monkeypatch.setattr(personal, "data_path", lambda *parts: tmp_path.joinpath(*parts[2:]))
    monkeypatch.setattr(personal, "load_mini", lambda: pipe)
    monkeypatch.setattr(personal, "attach_user", lambda *_: None)
    once, again = ["noto", "fluent", "blob", "blob"], ["fluent", "fluent", "fluent", "blob"]
    for said, styles in ((once, ["noto", "fluent"]), (again, ["fluent"])):
        monkeypatch.setattr(personal, "styles_named", lambda *_, said=said: np.array(said))
        monkeypatch.setattr("sys.argv", ["personalize", "--only-report", "--style", *styles])
        personal.main()
    rows = list(csv.DictReader((tmp_path / "style_accuracy.csv").open()))
    assert [(row["style"], row["accuracy"]) for row in rows] == [("noto", "0.25")] * 4 + [("fluent", "0.75")] * 4
