"""Everything that runs on a GPU stays on it: tried on a pretend device, which a machine without one has too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import tempfile
from pathlib import Path
import torch
from pretend_device import PretendDevice
from splitpoint.diffusion import hybrid, mini, mini_training, personalize, profile
from splitpoint.diffusion.emoji import load_emoji
from splitpoint.files import data_path
folder = Path(tempfile.mkdtemp())
CONCEPTS = ["rocket", "red apple"]
from splitpoint.diffusion.mini_networks import SIZES, build_mini
from splitpoint.diffusion.training import Run
mini_training.save_mini = lambda *a: None
"""

TRIALS = {
    "two devices in one operation": """
with PretendDevice():
    there = torch.ones(2, device="pretend")
    assert (there + 1).device.type == "pretend" and (there + 1).sum().item() == 4.0 and there.cpu().device.type == "cpu"
    try:
        there + torch.ones(2)
    except RuntimeError as error:
        assert "mixes devices" in str(error)
    else:
        raise AssertionError("mixed")
""",
    "split generation": """
names = ["noto", "fluent"]
folders = [data_path("models", "users", name) for name in names]
with PretendDevice():
    for scheduler in ("ddim", "euler", "dpmsolver++"):
        runs = [hybrid.HybridPipeline(*hybrid.load_users(data_path("models", "mini"), folders, device=device),
                                      num_steps=3, guidance_scale=3.0, scheduler=scheduler) for device in ("pretend", "cpu")]
        there, here = (run.generate(["rocket", "red apple"], names, [1, 2], 5, progress=False).latents for run in runs)
        assert there.device.type == "pretend" and here.device.type == "cpu"
        torch.testing.assert_close(there.cpu(), here, rtol=0.01, atol=0.01)
        assert runs[0].compare("rocket", names, [0, 3], progress=False).shape == (2, 2, 3, 64, 64)
        torch.testing.assert_close(*(run.noise_levels().cpu() for run in runs))
""",
    "training, and going on after an interruption": """
with PretendDevice():
    options = {"concepts": CONCEPTS, "other_share": 0.0, "device": "pretend", "progress": False}
    mini_training.train_mini("tiny", folder, steps=1, **options)
    again = mini_training.train_mini("tiny", folder, steps=2, resume=True, **options)
    assert {p.device.type for p in again.unet.parameters()} == {"pretend"}
    assert mini.draw(again, ["rocket"], [0], 2).shape == (1, 64, 64, 3)
    images, maps = load_emoji(["noto"], CONCEPTS).images, mini_training.concept_maps("pretend")
    for steps in (1, 2):
        run = Run(folder / "vae.safetensors", resume=True)
        losses = mini_training.fit_autoencoder(again.vae, images, steps, batch=2, feature_maps=maps, run=run)
        assert len(losses) == steps
""",
    "a personal model": """
with PretendDevice():
    pipe = build_mini(SIZES["tiny"], 0).to("pretend")
    shown = load_emoji(["noto"], CONCEPTS)
    personalize.personalize(shown.images, shown.prompts, pipe, steps=1, batch=4)
    assert 0 <= personalize.style_accuracy(pipe, "noto", ["rocket"], 2) <= 1
""",
    "a profiled step": """
with PretendDevice():
    model = mini.load_mini(device="pretend").unet
    for guidance in (False, True):
        for mode in ("eager", "channels_last"):
            profile.DenoisingStep(model, profile.architectures()["mini"], mode, guidance).prepare(2)()
""",
}


ALL = """
import json, sys, traceback
for name, code in json.load(sys.stdin).items():
    try:
        exec(code, dict(globals()))
    except BaseException:
        print(json.dumps([name, traceback.format_exc()]), flush=True)
    else:
        print(json.dumps([name, None]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes():
    """Of all trials in one process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + ALL],
        cwd=Path(__file__).parent,
        input=json.dumps(TRIALS),
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


@pytest.mark.slow
@pytest.mark.parametrize("trial", TRIALS)
def test_nothing_leaves_the_device(trial, outcomes):
    assert outcomes[trial] is None, outcomes[trial]
