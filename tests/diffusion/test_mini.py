"""The miniature: a folder that diffusers reads, prompts that matter, damage that is noticed, training that resumes."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from splitpoint.diffusion import mini
from splitpoint.diffusion.emoji import load_emoji
from splitpoint.diffusion.mini import (
    MiniSize,
    build_mini,
    build_tokenizer,
    draw,
    encode_images,
    fit_autoencoder,
    fit_denoiser,
    load_mini,
    save_mini,
    train_mini,
    warn_unknown,
    whiten_latents,
)
from splitpoint.files import data_path, read_meta

SMALLEST = MiniSize((32, 32), 1, (False, True), (8, 8, 8, 8), 32, 1, 8, 1e-3, 0.0, 0.0)


@pytest.fixture(scope="module")
def pipe():
    return load_mini()


@pytest.fixture
def folder(tmp_path):
    save_mini(build_mini(SMALLEST), tmp_path / "model", ["rocket", "red apple"], "none", 0, {})
    return tmp_path / "model"


def test_it_is_a_stable_diffusion_pipeline_in_half_precision_without_pickles():
    folder = data_path("models", "mini")
    plain = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert plain.unet.config.sample_size == 8 and plain.vae_scale_factor == 8
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    for part in mini._WEIGHTS:
        assert {value.dtype for value in load_file(folder / part).values()} == {torch.float16}


def test_a_step_means_the_noise_level_that_it_means_in_stable_diffusion(pipe):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for scheduler in (pipe.scheduler, mini.noise_scheduler()):
        torch.testing.assert_close(scheduler.alphas_cumprod, (1 - betas).cumprod(0))
        assert scheduler.config.beta_schedule == "scaled_linear"


def test_seed_and_prompt_decide_the_image(pipe):
    images = draw(pipe, ["birthday cake", "birthday cake", "rocket"], [1, 2, 1], 6)
    again = draw(pipe, ["birthday cake"], [1], 6)
    assert images.shape == (3, 64, 64, 3) and images.dtype == np.uint8
    assert np.abs(images[0].astype(int) - again[0]).max() <= 2
    apart = draw(pipe, ["birthday cake", "birthday cake", "rocket"], [1, 2, 1], 6, batch=2)
    assert np.abs(images.astype(int) - apart).max() <= 2
    assert np.abs(images[0].astype(int) - images[1]).mean() > 2
    assert np.abs(images[0].astype(int) - images[2]).mean() > 2


def test_guidance_can_be_off(pipe):
    on, off = (draw(pipe, "rocket", [1], 4, guidance_scale=scale) for scale in (3.0, 1.0))
    assert np.abs(on.astype(int) - off).mean() > 0.5


def test_most_images_show_what_the_prompt_asked_for(pipe):
    from splitpoint.diffusion.judges import load_concept_classifier

    prompts = ["red apple", "rocket", "umbrella", "sunflower", "guitar", "strawberry"] * 2
    said = load_concept_classifier().classify(draw(pipe, prompts, range(len(prompts)), 20))
    assert np.mean([a == b for a, b in zip(said, prompts)]) >= 0.6


def test_the_autoencoder_gives_back_what_it_was_given(pipe):
    shown = load_emoji(["noto", "openmoji"], ["birthday cake", "octopus", "guitar"])
    with torch.no_grad():
        latents, _ = encode_images(pipe.vae, shown.images)
        back = pipe.vae.decode(latents).sample
    error = (back.permute(0, 2, 3, 1) * 127.5 + 127.5 - torch.from_numpy(shown.images)).abs().mean()
    assert latents.shape == (6, 8, 8, 8) and error < 12


def test_unknown_words_are_named_with_the_nearest_concepts(pipe):
    with pytest.warns(UserWarning, match="'umbrela'.*umbrella"):
        assert warn_unknown("a red umbrela", pipe.concepts) == ["umbrela"]
    with pytest.warns(UserWarning, match="'zebra'"):
        draw(pipe, "zebra", [0], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_unknown(["birthday cake", "a Rocket"], pipe.concepts) == []


def test_each_known_word_is_one_token(pipe):
    words = sorted({word for name in pipe.concepts for word in mini._words(name) if word.isalpha()})
    assert all(len(pipe.tokenizer.tokenize(word)) == 1 for word in words)
    assert max(len(ids) for ids in pipe.tokenizer(list(pipe.concepts)).input_ids) <= mini.TOKENS
    again = build_tokenizer(words)
    assert again("red apple").input_ids == build_tokenizer(words)("red apple").input_ids


def test_damaged_missing_or_foreign_files_are_refused(folder):
    assert load_mini(folder).concepts == ("rocket", "red apple")
    file = folder / mini._WEIGHTS[0]
    content = bytearray(file.read_bytes())
    content[-5] ^= 255
    file.write_bytes(content)
    with pytest.raises(ValueError, match="does not match the checksum"):
        load_mini(folder)
    file.unlink()
    with pytest.raises(ValueError, match="holds no unet"):
        load_mini(folder)
    with pytest.raises(ValueError, match="holds no"):
        load_mini(folder.parent / "nothing")


def test_whitening_moves_the_scale_out_of_the_latents_and_changes_no_image():
    vae = build_mini(SMALLEST).vae.eval()
    shown = load_emoji(["noto"], load_emoji().concepts[:12])
    with torch.no_grad():
        before = vae.decode(encode_images(vae, shown.images)[0]).sample
        spread = encode_images(vae, shown.images)[1] / encode_images(vae, shown.images)[0].std((0, 2, 3))[:, None, None]
        whiten_latents(vae, shown.images)
        mean, std = encode_images(vae, shown.images)
        torch.testing.assert_close(vae.decode(mean).sample, before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(std, spread, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(mean.std((0, 2, 3)), torch.ones(8), atol=1e-2, rtol=0)


def counted_steps(monkeypatch, *numbers):
    """Budgets of so many steps, one after the other, instead of so many minutes."""
    budgets = iter(numbers)
    monkeypatch.setattr(mini, "time_budget", lambda *_: iter(np.linspace(0, 0.9, next(budgets))))


def test_a_resumed_training_draws_what_an_uninterrupted_one_would(tmp_path, monkeypatch):
    counted_steps(monkeypatch, 2, 4, 2)
    shown, checkpoint = load_emoji(["noto"], ["rocket", "red apple"]), tmp_path / "checkpoint.safetensors"
    fit_denoiser(build_mini(SMALLEST), shown, 1.0, batch=4, checkpoint=checkpoint, progress=False)
    drawn, real = [], torch.randint
    monkeypatch.setattr(torch, "randint", lambda *a, **k: drawn.append(k["generator"].get_state()) or real(*a, **k))
    fit_denoiser(build_mini(SMALLEST), shown, 1.0, batch=4, progress=False)
    fit_denoiser(build_mini(SMALLEST), shown, 1.0, batch=4, checkpoint=checkpoint, resume=True, progress=False)
    assert len(drawn) == 6 and all(map(torch.equal, drawn[2:4], drawn[4:]))


def test_the_running_mean_follows_the_weights(tmp_path, monkeypatch):
    counted_steps(monkeypatch, 1)
    pipe, checkpoint = build_mini(SMALLEST), tmp_path / "checkpoint.safetensors"
    before = {f"unet.{name}": weight.detach().clone() for name, weight in pipe.unet.named_parameters()}
    fit_denoiser(
        pipe, load_emoji(["noto"], ["rocket"]), 1.0, batch=4, learning_rate=1.0, checkpoint=checkpoint, progress=False
    )
    state, after = load_file(checkpoint), {f"unet.{name}": weight for name, weight in pipe.unet.named_parameters()}
    for name, start in before.items():
        expected = start + (state[f"weight.{name}"] - start) * 9 / 11  # keeps 2/11 after the first step
        torch.testing.assert_close(state[f"average.{name}"], expected)
        assert torch.equal(after[name], state[f"average.{name}"])
    assert not torch.equal(state["weight.unet.conv_in.weight"], before["unet.conv_in.weight"])


def test_the_learning_rate_warms_up_and_falls():
    optimizer = torch.optim.SGD([torch.zeros(1)])

    def rate(part, steps):
        mini.set_rate(optimizer, 2.0, part, steps)
        return optimizer.param_groups[0]["lr"]

    assert [rate(0.0, 0), rate(0.0, 49), rate(0.0, 99), rate(0.0, 999)] == pytest.approx([0.02, 1, 2, 2])
    assert [rate(0.5, 999), rate(1.0, 999)] == pytest.approx([1.02, 0.04])


def test_training_goes_on_where_it_was_interrupted(tmp_path):
    shown, checkpoint = load_emoji(["noto"], ["rocket", "red apple"]), tmp_path / "checkpoint.safetensors"
    first = fit_denoiser(build_mini(SMALLEST), shown, 0.01, batch=4, checkpoint=checkpoint, progress=False)
    pipe = build_mini(SMALLEST)
    losses = fit_denoiser(pipe, shown, 0.02, batch=4, checkpoint=checkpoint, resume=True, progress=False)
    assert len(losses) > len(first) and losses[: len(first)] == pytest.approx(first)
    with pytest.raises(ValueError, match="another architecture"):
        fit_denoiser(
            build_mini(MiniSize(**{**SMALLEST.__dict__, "unet_channels": (32, 64)})),
            shown,
            1.0,
            checkpoint=checkpoint,
            resume=True,
            progress=False,
        )


def test_an_autoencoder_goes_on_where_it_was_interrupted_and_is_not_trained_twice(tmp_path):
    images, checkpoint = load_emoji(["noto"], ["rocket", "red apple"]).images, tmp_path / "checkpoint.safetensors"
    options = dict(batch=2, checkpoint=checkpoint, resume=True, progress=False)
    pipe, finished = build_mini(SMALLEST), build_mini(SMALLEST)
    first = fit_autoencoder(build_mini(SMALLEST).vae, images, 0.005, **options)
    errors = fit_autoencoder(pipe.vae, images, 0.01, **options)
    assert len(errors) > len(first) and errors[: len(first)] == pytest.approx(first)
    assert fit_autoencoder(finished.vae, images, 0.01, **options) == pytest.approx(errors)
    for one, other in zip(pipe.vae.parameters(), finished.vae.parameters()):
        torch.testing.assert_close(one, other)


def test_a_training_of_all_parts_can_be_interrupted_and_read_back(tmp_path, monkeypatch):
    """The only one that trains the autoencoder too, as ``make train-mini`` does."""
    monkeypatch.setitem(mini.SIZES, "small", SMALLEST)
    options = dict(
        out=tmp_path,
        minutes=0.01,
        vae_minutes=0.01,
        concepts=["rocket", "red apple"],
        styles=["noto"],
        device="cpu",
        progress=False,
    )
    with monkeypatch.context() as cut:
        cut.setattr(mini, "fit_denoiser", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_mini("small", **options)
    trained = load_file(tmp_path / "checkpoint.vae.safetensors")["losses"]
    pipe = train_mini("small", resume=True, **options)
    assert torch.equal(trained, load_file(tmp_path / "checkpoint.vae.safetensors")["losses"])
    assert read_meta(tmp_path / mini._WEIGHTS[0])["command"].endswith("--size small --minutes 0.01 --vae-minutes 0.01")
    again = load_mini(tmp_path)
    for part in ("vae", "unet", "text_encoder"):
        for one, other in zip(getattr(pipe, part).parameters(), getattr(again, part).parameters()):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-3)


def test_a_tiny_one_is_trained_saved_and_read_back(tmp_path, pipe):
    trained = train_mini(
        "tiny", tmp_path / "tiny", minutes=0.02, concepts=["rocket", "red apple"], vae=pipe.vae, progress=False
    )
    image = trained("rocket", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()
    assert load_mini(tmp_path / "tiny").concepts == ("rocket", "red apple")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": "huge"}, "huge"),
        ({"minutes": 0}, "minutes=0"),
        ({"vae_minutes": -1}, "vae_minutes=-1"),
        ({"concepts": ["no such thing"]}, "no such thing"),
        ({"styles": ["apple"], "concepts": ["rocket"]}, "apple"),
    ],
)
def test_bad_training_requests(given, says):
    with pytest.raises(ValueError, match=says):
        train_mini(**given)


def test_bad_drawing_requests(pipe):
    with pytest.raises(ValueError, match="prompts has 2 entries and seeds has 1"):
        draw(pipe, ["rocket", "rocket"], [0])
    with pytest.raises(ValueError, match="uint8"):
        encode_images(pipe.vae, np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_draws_nearly_what_the_processor_draws(pipe):
    here, there = draw(pipe, "rocket", [1], 6), draw(load_mini(device="cuda"), "rocket", [1], 6)
    assert np.abs(here.astype(int) - there).mean() < 3
