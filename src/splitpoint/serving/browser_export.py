"""The miniature as ONNX files, so that a browser can run it: a U-Net for each style, the text encoder, the decoder.

A file holds the weights as they were trained, in float16, and an adapter as its two factors; the graph widens them to
float32 and merges the adapter into them. A runtime does that once, while it loads. So a download is half as large as in
float32 although no weight is rounded a second time, and what comes out is PyTorch's to 1e-4.
"""

import copy
import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from filelock import FileLock
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.utils import parametrize

from splitpoint.checks import a_path, instance_of
from splitpoint.diffusion.families import StableDiffusion, family_of
from splitpoint.diffusion.hybrid import HybridPipeline
from splitpoint.diffusion.mini import HEAD
from splitpoint.diffusion.mini_networks import token_ids
from splitpoint.diffusion.users import ADAPTER_FILE, User
from splitpoint.files import data_path, results_path, sha256, write_atomically

FORM = 1  # of the files; one more makes everybody's cache stale
OPSET = 18
LARGEST_DIFFERENCE = 1e-4  # of any output from PyTorch's, float32
NEEDED = ("onnx", "onnxruntime")
TEXT, DECODER, LIST = "text_encoder.onnx", "decoder.onnx", "exported.json"


class _Widened(nn.Module):
    """Weights that are stored in float16."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.float()


class _Adapted(nn.Module):
    """Weights and an adapter's two factors, merged."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor, scale: float):
        super().__init__()
        self.down, self.up = (nn.Parameter(factor.half(), requires_grad=False) for factor in (down, up))
        self.scale = scale

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1)).view_as(weight)


class _Denoiser(nn.Module):
    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, latents, timesteps, text):
        return self.unet(latents, timesteps, encoder_hidden_states=text, return_dict=False)[0]


class _Text(nn.Module):
    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens):
        return self.encoder(tokens)[0]


class _Decoder(nn.Module):
    """As ``Family.decode``: latents to pictures with values in [0, 1]."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae
        self.scale, self.shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0

    def forward(self, latents):
        return (self.vae.decode(latents / self.scale + self.shift, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)


def missing() -> list[str]:
    """Packages that an export needs and that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def exported(hybrid: HybridPipeline, folder: Path | None = None) -> Path:
    """The folder with the files of these models; they are made if they are not there yet, in about 20 seconds.

    Args:
        hybrid: the miniature and its users, in float32 on the processor.
        folder: where such folders are kept, one for each state of the weights; ``results/browser`` if left out.

    Returns:
        A folder with ``unet-<style>.onnx`` for each user, ``text_encoder.onnx``, ``decoder.onnx`` and
        ``exported.json``: of each file its ``bytes``, its ``sha256`` and its largest ``difference`` from PyTorch.

    Raises:
        ValueError: if a package is missing, the models are of another family, or an output differs too much.
    """
    instance_of("hybrid", hybrid, HybridPipeline)
    if folder is not None:
        a_path("folder", folder)
    if not isinstance(hybrid.family, StableDiffusion):
        raise ValueError(f"hybrid holds a {type(hybrid.family).__name__}; valid is a U-Net with one text encoder")
    kept = results_path("browser") if folder is None else Path(folder)
    found = kept / f"models-{_state(tuple(hybrid.users))}"
    if (found / LIST).exists():
        return found
    if absent := missing():
        raise ValueError(f"an export needs {' and '.join(absent)}: pip install 'splitpoint[browser]'")
    kept.mkdir(parents=True, exist_ok=True)
    with FileLock(kept / "export.lock"):
        if not (found / LIST).exists():
            made = Path(mkdtemp(dir=kept))
            try:
                _write(hybrid, made)
                made.replace(found)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    return found


def read_list(folder: Path) -> dict[str, dict]:
    """What ``exported`` says of its files.

    Raises:
        ValueError: if the folder holds no list.
    """
    a_path("folder", folder)
    try:
        return json.loads((Path(folder) / LIST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"folder={Path(folder).name!r} holds no {LIST} that can be read") from error


def _state(users: tuple[str, ...]) -> str:
    """The state of all weights, in 16 digits."""
    weights = [data_path("models", "mini", HEAD).with_name(HEAD + ".meta.json")]
    weights += [data_path("models", "users", name, ADAPTER_FILE) for name in users]
    said = [FORM, OPSET, torch.__version__, *users, *map(sha256, weights)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _write(hybrid: HybridPipeline, folder: Path) -> None:
    family = hybrid.family
    _, channels, height, width = (1, *family.latent_shape)
    tokens, features = family.shapes["text"]
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator)
    differences = {}
    inputs = {
        "latents": normal(2, channels, height, width),
        "timesteps": torch.tensor([801.0, 1.0]),
        "text": normal(2, tokens, features),
    }
    for name, user in hybrid.users.items():
        with user.model(), torch.no_grad():
            expected = family_of(user.pipeline).denoise(
                inputs["latents"], inputs["timesteps"], {"text": inputs["text"]}
            )
        differences[f"unet-{name}.onnx"] = _export(
            _Denoiser(_plain_unet(user)), folder / f"unet-{name}.onnx", inputs, "output", expected
        )
    ids = token_ids(hybrid.pipeline.tokenizer, ["red apple", ""])
    with torch.no_grad():
        expected = hybrid.pipeline.text_encoder(ids)[0]
    encoder = _Text(_halved(copy.deepcopy(hybrid.pipeline.text_encoder)))
    differences[TEXT] = _export(encoder, folder / TEXT, {"tokens": ids}, "text", expected)
    decoder = _Decoder(_halved(copy.deepcopy(family.vae)))
    expected = family.decode(inputs["latents"])
    differences[DECODER] = _export(decoder, folder / DECODER, {"latents": inputs["latents"]}, "pictures", expected)
    said = {
        name: dict(bytes=(folder / name).stat().st_size, sha256=sha256(folder / name), difference=difference)
        for name, difference in differences.items()
    }
    write_atomically(folder / LIST, json.dumps(said, indent=1).encode())


def _plain_unet(user: User) -> nn.Module:
    """A user's U-Net without peft: the layers themselves, with the adapter in their weights."""
    unet = copy.deepcopy(family_of(user.pipeline).network)
    factors = {}
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, last = name.rpartition(".")
            setattr(unet.get_submodule(parent), last, layer.get_base_layer())
            if user.adapter in layer.scaling:
                parts = (getattr(layer, part)[user.adapter].weight.detach() for part in ("lora_A", "lora_B"))
                factors[name] = (*parts, layer.scaling[user.adapter])
    return _halved(unet, factors)


def _halved(network: nn.Module, factors: Mapping[str, tuple] | None = None) -> nn.Module:
    """A network that keeps every weight in float16 and computes in float32; it is changed in place."""
    for name, layer in list(network.named_modules()):
        for part, weight in list(layer.named_parameters(recurse=False)):
            setattr(layer, part, nn.Parameter(weight.detach().half(), requires_grad=False))
            parametrize.register_parametrization(layer, part, _Widened(), unsafe=True)
            if part == "weight" and factors and name in factors:
                parametrize.register_parametrization(layer, part, _Adapted(*factors[name]), unsafe=True)
    return network.eval()


def _export(
    network: nn.Module, file: Path, inputs: Mapping[str, torch.Tensor], output: str, expected: torch.Tensor
) -> float:
    """Write one file, run it, and say how far it is from PyTorch.

    Raises:
        ValueError: if it is further than ``LARGEST_DIFFERENCE``.
    """
    import onnxruntime

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every comparison of a shape, and that it is the older way
        torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            str(file),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={name: {0: "lines"} for name in (*inputs, output)},
            opset_version=OPSET,
            do_constant_folding=False,  # folded weights would be float32 in the file
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    difference = float((torch.from_numpy(found) - expected).abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise ValueError(f"{file.name} differs from PyTorch by {difference:.1e}; valid is {LARGEST_DIFFERENCE:.0e}")
    return difference
