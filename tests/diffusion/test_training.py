"""The one training loop: the same on every machine, interrupted or not, and never from a damaged checkpoint."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file

from splitpoint.diffusion import training
from splitpoint.diffusion.training import Run, fit, load_state, noised, save_state, writable_folder

STEPS = 12


def problem(size: int = 3):
    """A loss with a random part, and weights for it."""
    weight = torch.nn.Parameter(torch.full((size,), 5.0))

    def loss(generator: torch.Generator) -> torch.Tensor:
        return (weight - torch.randn(size, generator=generator)).square().mean()

    return loss, {"w": weight}


def train(run: Run | None = None, steps: int = STEPS, **more):
    loss, weights = problem()
    losses = fit(loss, weights, steps, learning_rate=0.1, run=run or Run(), **more)
    return losses, weights["w"].detach().clone()


@pytest.mark.parametrize("mean_decay", [None, 0.9])
@pytest.mark.parametrize("cut_after", [1, 5, STEPS])
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, mean_decay, cut_after):
    whole = train(mean_decay=mean_decay)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with monkeypatch.context() as patch:
        clock = iter([0.0] * (1 + 2 * cut_after) + [1e9] * 100)  # time is up after so many steps
        patch.setattr(training.time, "monotonic", lambda: next(clock))
        patch.setattr(training, "CHECKPOINT_EVERY_S", math.inf)
        losses, _ = train(Run(checkpoint, minutes=1), mean_decay=mean_decay)
        assert losses == whole[0][:cut_after]
    again = train(Run(checkpoint, resume=True), mean_decay=mean_decay)
    assert again[0] == whole[0] and torch.equal(again[1], whole[1])
    finished = train(Run(checkpoint, resume=True), mean_decay=mean_decay)  # nothing is trained twice
    assert finished[0] == whole[0] and torch.equal(finished[1], whole[1])


def test_a_seed_decides_what_is_learned():
    assert train(seed=1)[0] == train(seed=1)[0] != train(seed=2)[0]


def test_the_learning_rate_warms_up_and_falls_to_zero(monkeypatch):
    rates, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(training, "WARMUP_STEPS", 10)
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    train(steps=110)
    assert rates[:11] == pytest.approx([0.1 * k / 10 for k in range(11)])
    assert rates[60] == pytest.approx(0.05) and rates[-1] < 1e-4
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_the_weights_end_as_their_running_mean(monkeypatch):
    followed = []
    monkeypatch.setattr(training.EMAModel, "step", lambda self, weights: followed.append(weights[0].detach().clone()))
    _, after = train(mean_decay=0.9)
    assert len(followed) == STEPS and torch.equal(after, torch.full((3,), 5.0))  # the mean that was never moved
    monkeypatch.undo()
    _, mean = train(mean_decay=0.9)
    expected = followed[0]
    for k, weight in enumerate(followed[1:], 1):  # decay grows as (1 + k) / (10 + k) up to its value
        expected = expected + (weight - expected) * (1 - min(0.9, (1 + k) / (10 + k)))
    torch.testing.assert_close(mean, expected)


def test_a_checkpoint_with_any_flipped_bit_is_refused(tmp_path):
    checkpoint, draw = tmp_path / "checkpoint.safetensors", random.Random(0)
    train(Run(checkpoint))
    content = checkpoint.read_bytes()
    assert load_state(checkpoint)["weight.w"].shape == (3,)
    for _ in range(60):
        damaged, place = bytearray(content), draw.randrange(len(content))
        damaged[place] ^= 1 << draw.randrange(8)
        checkpoint.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint checkpoint\.safetensors"):
            train(Run(checkpoint, resume=True))
    for length in (0, 8, len(content) // 2, len(content) - 1):
        checkpoint.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"checkpoint checkpoint\.safetensors"):
            load_state(checkpoint)
    save_file({"weight.w": torch.zeros(3)}, checkpoint)  # not one of ours
    with pytest.raises(ValueError, match="does not match"):
        load_state(checkpoint)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    train(Run(checkpoint))
    loss, weights = problem(4)
    with pytest.raises(ValueError, match="another architecture: w"):
        fit(loss, weights, STEPS, learning_rate=0.1, run=Run(checkpoint, resume=True))
    with pytest.raises(ValueError, match="another architecture"):  # it holds no running mean
        train(Run(checkpoint, resume=True), mean_decay=0.9)


def test_a_state_is_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "state"
    save_state(path, {"a": torch.arange(3)})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        save_state(path, {"a": torch.arange(4)})
    assert torch.equal(load_state(path)["a"], torch.arange(3)) and list(tmp_path.iterdir()) == [path]


def test_a_loss_that_is_not_finite_ends_the_training():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(RuntimeError, match=r"no finite loss after 0 steps; learning_rate=0\.5"):
        fit(lambda generator: weight.sum() * math.nan, {"w": weight}, 3, learning_rate=0.5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_target_is_what_the_schedule_has_the_model_predict(prediction):
    schedule = DDIMScheduler(prediction_type=prediction)
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noisy, target, t = noised(schedule, latents, torch.Generator().manual_seed(0))
    assert sorted(t.tolist()) == t.tolist() and [k // 200 for k in t.tolist()] == [0, 1, 2, 3, 4]  # one in each fifth
    _, _, many = noised(schedule, latents.repeat(100, 1, 1, 1), torch.Generator().manual_seed(0))
    assert many.min() < 5 and many.max() > 995  # the noisiest level, too
    alpha = schedule.alphas_cumprod[t].reshape(5, 1, 1, 1)
    noise = (noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
    expected = noise if prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    torch.testing.assert_close(target, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"steps": 0}, "steps=0"), ({"steps": 1.5}, "steps=1.5"), ({"learning_rate": math.nan}, "learning_rate=nan")],
)
def test_bad_numbers_are_refused(given, says):
    loss, weights = problem()
    with pytest.raises(ValueError, match=says):
        fit(loss, weights, **{"steps": 3, "learning_rate": 0.1, **given})


@pytest.mark.parametrize("minutes", [0, -1, math.nan])
def test_a_budget_that_is_none_is_refused(minutes):
    with pytest.raises(ValueError, match=f"minutes={minutes}"):
        Run(minutes=minutes)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below"):
        with pytest.raises(ValueError, match=f"out='{folder}' is not a folder that can be written"):
            writable_folder("out", folder)
    writable_folder("out", tmp_path / "new" / "one")
    assert list((tmp_path / "new" / "one").iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_step_is_a_graph_and_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path, recwarn):
    def on_the_gpu(steps: int, run: Run = Run()):
        weight = torch.nn.Parameter(torch.full((3,), 5.0, device="cuda"))

        def loss(generator: torch.Generator) -> torch.Tensor:
            return (weight - torch.randn(3, generator=generator, device="cuda")).square().mean()

        losses = fit(loss, {"w": weight}, steps, learning_rate=0.1, mean_decay=0.9, run=run)
        return losses, weight.detach()

    whole = on_the_gpu(120)
    assert len(set(whole[0])) == 120 and np.mean(whole[0][-20:]) < np.mean(whole[0][:20])
    checkpoint = tmp_path / "checkpoint.safetensors"
    on_the_gpu(120, Run(checkpoint, minutes=1e-3))
    again = on_the_gpu(120, Run(checkpoint, resume=True))
    assert again[0] == whole[0] and torch.equal(again[1], whole[1])
    assert not [warning for warning in recwarn if "no CUDA graph" in str(warning.message)]
