"""The miniature: a folder that diffusers reads, prompts that matter, damage that is noticed, training that resumes."""

import warnings
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from splitpoint.diffusion import mini_training, training
from splitpoint.diffusion.emoji import load_emoji
from splitpoint.diffusion.mini import draw, load_mini, save_mini, warn_unknown, words_of
from splitpoint.diffusion.mini_networks import (
    SIZES,
    TOKENS,
    MiniSize,
    build_mini,
    build_tokenizer,
    encode_images,
    noise_scheduler,
)
from splitpoint.diffusion.mini_training import (
    concept_maps,
    decibels,
    fit_autoencoder,
    fit_denoiser,
    improve_mini,
    picture_loss,
    train_mini,
    whiten_latents,
)
from splitpoint.diffusion.training import Run, load_state
from splitpoint.files import data_path, read_meta, write_meta

SMALLEST = MiniSize((32, 32), 1, (False, True), (8, 8, 8, 8), 8, 32, 1, 8, 1e-3, 4, 2, 3)


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
    weights = list(folder.rglob("*.safetensors"))
    assert len(weights) == 3
    for part in weights:
        assert {value.dtype for value in load_file(part).values()} == {torch.float16}


def test_a_step_means_the_noise_level_that_it_means_in_stable_diffusion(pipe):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for scheduler in (pipe.scheduler, noise_scheduler()):
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


@pytest.mark.slow
def test_most_images_show_what_the_prompt_asked_for(pipe):
    from splitpoint.diffusion.judges import load_concept_judge

    prompts = ["red apple", "rocket", "umbrella", "sunflower", "guitar", "strawberry"] * 2
    said = load_concept_judge().classify(draw(pipe, prompts, range(len(prompts)), 20))
    assert np.mean([a == b for a, b in zip(said, prompts)]) >= 0.6


def test_the_autoencoder_gives_back_what_it_was_given(pipe):
    shown = load_emoji(["noto", "openmoji"], ["birthday cake", "octopus", "guitar"])
    with torch.no_grad():
        latents, _ = encode_images(pipe.vae, shown.images)
        back = pipe.vae.decode(latents).sample
    error = (back.permute(0, 2, 3, 1) * 127.5 + 127.5 - torch.from_numpy(shown.images)).abs().mean()
    assert latents.shape == (6, 16, 8, 8) and error < 12


def test_unknown_words_are_named_with_the_nearest_concepts(pipe):
    with pytest.warns(UserWarning, match="'umbrela'.*umbrella"):
        assert warn_unknown("a red umbrela", pipe.concepts) == ["umbrela"]
    with pytest.warns(UserWarning, match="'zebra'"):
        draw(pipe, "zebra", [0], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_unknown(["birthday cake", "a Rocket"], pipe.concepts) == []


def test_each_known_word_is_one_token(pipe):
    words = sorted({word for name in pipe.concepts for word in words_of(name) if word.isalpha()})
    assert all(len(pipe.tokenizer.tokenize(word)) == 1 for word in words)
    assert max(len(ids) for ids in pipe.tokenizer(list(pipe.concepts)).input_ids) <= TOKENS
    again = build_tokenizer(words)
    assert again("red apple").input_ids == build_tokenizer(words)("red apple").input_ids


def test_a_foreign_or_empty_folder_is_refused(folder):
    assert load_mini(folder).concepts == ("rocket", "red apple")
    with pytest.raises(ValueError, match="holds no model_index"):
        load_mini(folder.parent / "nothing")


EVERY_FILE = (
    "concepts.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini") / "model"
    save_mini(build_mini(SMALLEST), folder, ["rocket", "red apple"], "none", 0, {})
    return folder


def test_the_list_of_files_is_what_is_saved(small_folder):
    files = {path.relative_to(small_folder).as_posix() for path in small_folder.rglob("*") if path.is_file()}
    assert files == {*EVERY_FILE, "model_index.json.meta.json"}


@pytest.mark.parametrize("name", EVERY_FILE)
def test_every_file_of_the_folder_is_checked(small_folder, name):
    file = small_folder / name
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        with pytest.raises(ValueError, match=rf"{file.name}.* does not match the checksum"):
            load_mini(small_folder)
        file.unlink()
        with pytest.raises(ValueError, match=f"holds no {name}"):
            load_mini(small_folder)
    finally:
        file.write_bytes(content)


def test_a_file_too_many_is_refused(small_folder):
    stranger = small_folder / "tokenizer" / "added_tokens.json"
    stranger.write_text("{}")
    try:
        with pytest.raises(ValueError, match=r"holds tokenizer/added_tokens\.json, which is not the pipeline's"):
            load_mini(small_folder)
    finally:
        stranger.unlink()


def test_a_sidecar_that_lists_nothing_is_refused(folder):
    write_meta(folder / "model_index.json", kind="trained", command="by hand")
    with pytest.raises(ValueError, match="lists no files"):
        load_mini(folder)


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


@pytest.mark.parametrize("decoder_only", [False, True])
def test_a_trained_autoencoder_errs_less(decoder_only):
    vae, shown = build_mini(SMALLEST).vae, load_emoji(["noto"], load_emoji().concepts[:8])
    latents, before = encode_images(vae, shown.images)[0], decibels(vae, shown.images).mean()
    losses = fit_autoencoder(
        vae, shown.images, 12, batch=4, learning_rate=1e-2, feature_maps=concept_maps(), decoder_only=decoder_only
    )
    assert len(losses) == 12 and decibels(vae, shown.images).mean() > before + 1
    assert torch.equal(encode_images(vae, shown.images)[0], latents) == decoder_only


def test_decibels_are_those_of_the_error():
    class Off(torch.nn.Module):
        """Gives back every picture a tenth of the range too bright."""

        device = torch.device("cpu")

        def encode(self, pixels):
            mean = pixels.clone()
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=mean))

        def decode(self, latents):
            return SimpleNamespace(sample=latents + 0.2)

    grey = np.full((2, 64, 64, 3), 100, np.uint8)
    assert decibels(Off(), grey) == pytest.approx(20, abs=1e-4)


def test_an_edge_costs_more_than_an_even_error_of_the_same_size():
    real = torch.zeros(1, 3, 8, 8)
    even, edges = torch.full_like(real, 0.1), 0.1 * (-1) ** torch.arange(8.0).expand_as(real)
    assert picture_loss(edges, real) > picture_loss(even, real) > picture_loss(0.5 * even, real)


def test_an_interrupted_denoiser_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    shown, checkpoint = load_emoji(["noto"], ["rocket", "red apple"]), tmp_path / "checkpoint.safetensors"

    def train(run=None):
        pipe = build_mini(SMALLEST)
        return fit_denoiser(pipe, shown, 4, batch=4, run=run or Run()), pipe

    losses, whole = train()
    with monkeypatch.context() as patch:
        clock = iter([0.0] * 5 + [1e9] * 9)  # time is up after two steps
        patch.setattr(training.time, "monotonic", lambda: next(clock))
        assert train(Run(checkpoint, minutes=1))[0] == losses[:2]
    again, pipe = train(Run(checkpoint, resume=True))
    assert again == losses and not pipe.unet.training
    for part in ("unet", "text_encoder"):
        for one, other in zip(getattr(whole, part).parameters(), getattr(pipe, part).parameters()):
            assert torch.equal(one, other)


def test_a_checkpoint_of_another_size_is_refused(tmp_path):
    shown, checkpoint = load_emoji(["noto"], ["rocket"]), tmp_path / "checkpoint.safetensors"
    fit_denoiser(build_mini(SMALLEST), shown, 1, batch=2, run=Run(checkpoint))
    other = build_mini(MiniSize(**{**SMALLEST.__dict__, "unet_channels": (32, 64)}))
    with pytest.raises(ValueError, match="another architecture"):
        fit_denoiser(other, shown, 1, batch=2, run=Run(checkpoint, resume=True))


def test_an_autoencoder_is_not_trained_twice(tmp_path):
    images, checkpoint = load_emoji(["noto"], ["rocket", "red apple"]).images, tmp_path / "checkpoint.safetensors"
    first, second = build_mini(SMALLEST).vae, build_mini(SMALLEST).vae
    losses = fit_autoencoder(first, images, 3, batch=2, run=Run(checkpoint))
    assert fit_autoencoder(second, images, 3, batch=2, run=Run(checkpoint, resume=True)) == losses
    for one, other in zip(first.parameters(), second.parameters()):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_training_of_all_parts_can_be_interrupted_and_read_back(tmp_path, monkeypatch):
    """The only one that trains the autoencoder too, as ``make train-mini`` does."""
    monkeypatch.setitem(SIZES, "small", SMALLEST)
    options = dict(out=tmp_path, concepts=["rocket", "red apple"], styles=["noto"], device="cpu", progress=False)
    with monkeypatch.context() as cut:
        cut.setattr(mini_training, "fit_denoiser", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_mini("small", **options)
    trained = load_state(tmp_path / "checkpoint.vae.safetensors")["losses"]
    pipe = train_mini("small", resume=True, **options)
    assert torch.equal(trained, load_state(tmp_path / "checkpoint.vae.safetensors")["losses"])
    meta = read_meta(tmp_path / "model_index.json")
    assert meta["command"].endswith("--size small --steps 3 --vae-steps 2 --seed 0")
    assert meta["settings"]["unet_steps"] == 3 and meta["settings"]["vae_steps"] == 2
    again = load_mini(tmp_path)  # the checkpoints beside it are no part of the pipeline
    for part in ("vae", "unet", "text_encoder"):
        for one, other in zip(getattr(pipe, part).parameters(), getattr(again, part).parameters()):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-3)


def test_a_tiny_one_takes_the_committed_autoencoder(pipe):
    trained = train_mini("tiny", steps=1, concepts=["rocket", "red apple"], other_share=0.0, device="cpu")
    image = trained("rocket", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()
    for one, other in zip(trained.vae.parameters(), pipe.vae.parameters()):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_an_improved_miniature_keeps_its_latents_and_says_what_it_came_from(folder, tmp_path):
    images = load_emoji(["noto"], ["rocket", "red apple"]).images
    before, latents = load_mini(folder), encode_images(load_mini(folder).vae, images)[0]
    improve_mini(folder, tmp_path / "better", steps=2, decoder_steps=2, styles=["noto"], device="cpu")
    after = load_mini(tmp_path / "better")
    torch.testing.assert_close(encode_images(after.vae, images)[0], latents, rtol=1e-2, atol=1e-2)
    for part in ("vae.decoder", "unet", "text_encoder"):
        weights = [attrgetter(part)(pipe).state_dict() for pipe in (before, after)]
        assert any(not torch.equal(one, other) for one, other in zip(*(w.values() for w in weights)))
    for file in (tmp_path / "better").rglob("*.json"):  # nothing says where the first one lay
        assert str(tmp_path) not in file.read_text()
    command = read_meta(tmp_path / "better" / "model_index.json")["command"]
    assert command.startswith("none; ") and command.endswith("--improve --steps 2 --vae-steps 2 --seed 1")
    with pytest.raises(ValueError, match="decoder_steps=0"):
        improve_mini(folder, decoder_steps=0)


def test_a_report_counts_what_the_judge_names_right(folder, monkeypatch):
    monkeypatch.setattr(mini_training, "STYLES", ("noto",))
    drawn = []

    def judged(pipe, prompts=("rocket",), seeds=range(4), num_steps=50):
        drawn.append((tuple(prompts), len(seeds), num_steps))
        return 0.75, dict.fromkeys(prompts, 0.75), np.zeros((len(prompts), len(seeds), 64, 64, 3), np.uint8)

    monkeypatch.setattr(mini_training, "concept_accuracy", judged)
    found = mini_training.report(folder, num_steps=7)
    assert drawn == [(("rocket",), 4, 7), (("rocket", "red apple"), 4, 7)]
    assert found["grid_accuracy"] == found["all_concepts_accuracy"] == 0.75
    assert read_meta(folder / "samples.png")["settings"]["autoencoder_decibels"] == found["autoencoder_decibels"]
    load_mini(folder)  # the sample picture is no part of the pipeline
    with pytest.raises(ValueError, match="num_steps=-1"):
        mini_training.report(folder, num_steps=-1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": "huge"}, "huge"),
        ({"steps": 0}, "steps=0"),
        ({"vae_steps": -1}, "vae_steps=-1"),
        ({"minutes": 0}, "minutes=0"),
        ({"out": Path(__file__)}, "cannot be written|is not a folder"),
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
