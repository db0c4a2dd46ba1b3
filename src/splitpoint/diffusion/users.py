"""Personal models: a LoRA adapter that is switched on in the edge's own weights, or a fine-tuned pipeline of its own.

Users who share the edge's weights take turns (``adapter_on``); a fingerprint says what edge and device must share.
"""

import copy
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, RLock
from weakref import WeakKeyDictionary

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import file_exists, hf_hub_download
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from splitpoint.checks import a_mapping, a_path, a_sequence
from splitpoint.diffusion.families import FAMILIES, family_of
from splitpoint.diffusion.mini import HEAD, check_folder
from splitpoint.diffusion.quiet import quiet
from splitpoint.files import data_path, meta_path, read_meta, sha256

ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it, and this project
_PEFT_FILE = "adapter_model.safetensors"  # as peft names it
_adapted: WeakKeyDictionary = WeakKeyDictionary()
_contents: WeakKeyDictionary = WeakKeyDictionary()  # of a denoiser: {adapter: checksum of its file}
_locks: WeakKeyDictionary = WeakKeyDictionary()
_making_locks = Lock()


@dataclass(frozen=True)
class User:
    """What one user's device holds: a pipeline, and the adapter to switch on in it if the model is a LoRA."""

    name: str
    pipeline: DiffusionPipeline
    adapter: str | None = None

    @contextmanager
    def model(self) -> Iterator[DiffusionPipeline]:
        """The pipeline with this user's adapter on; afterwards every adapter is off again."""
        with adapter_on(self.pipeline, self.adapter) as pipeline:
            yield pipeline


def mini_users() -> tuple[str, ...]:
    """Names of the miniature's users: the folders with an adapter in ``data/models/users``, vendors first."""
    from splitpoint.diffusion.emoji import STYLES

    names = [file.parent.name for file in data_path("models", "users").glob(f"*/{ADAPTER_FILE}")]
    return tuple(sorted(names, key=lambda name: ([*STYLES, name].index(name), name)))


def load_users(
    base: str | Path | DiffusionPipeline,
    personal: Sequence[str | Path] | Mapping[str, str | Path],
    *,
    merge: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[DiffusionPipeline, dict[str, User]]:
    """Load a cluster-wide pipeline and the users' personal models.

    Args:
        base: folder or hub name of a pipeline of a class that ``families`` knows, or the pipeline itself.
        personal: folders, files or hub names, each a full fine-tuned pipeline (DreamBooth) or a LoRA adapter;
            a mapping gives the users' names, a list takes them from the last part of each path.
        merge: give each LoRA user a copy of the denoiser with the adapter merged into it: faster steps for more
            memory, the same up to rounding.
        dtype: of the weights; as stored if left out.
        device: where to put the pipelines, one that was given too; for instance "cuda".

    Returns:
        The edge's pipeline, and name -> ``User``; LoRA users share the edge's weights.

    Raises:
        ValueError: if a path holds neither a pipeline nor an adapter, or one that does not fit the base.
    """
    if not isinstance(personal, Mapping):
        for path in a_sequence("personal", personal):
            a_path("personal", path)
        names = [Path(path).stem if str(path).endswith(".safetensors") else Path(path).name for path in personal]
        if len(set(names)) < len(names):
            raise ValueError(f"personal={names} has a name twice; pass a mapping from user name to path")
        personal = dict(zip(names, personal))
    for path in a_mapping("personal", personal, empty=False).values():
        a_path("personal", path)
    edge = load_pipeline(base, dtype, device) if isinstance(base, (str, Path)) else base
    family_of(edge, "base")
    if device is not None:
        edge.to(device)
    users = {}
    for name, path in personal.items():
        if _is_adapter(path) and merge:
            users[name] = User(name, _merged(edge, path, name))
        elif _is_adapter(path):
            users[name] = User(name, edge, add_adapter(edge, path, name))
        else:
            users[name] = User(name, load_pipeline(path, dtype or _network(edge).dtype, device or edge.device))
            if model_fingerprint(users[name].pipeline) != model_fingerprint(edge):
                raise ValueError(
                    f"personal={str(path)!r} is not a fine-tune of the base: its autoencoder, latent "
                    "shape or prediction type differs"
                )
    return edge, users


def model_fingerprint(pipeline: DiffusionPipeline) -> str:
    """What edge and device must share, in 16 hexadecimal digits; see ``Family.fingerprint``."""
    return family_of(pipeline).fingerprint


def parts_of(pipeline: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    """The parts that may carry an adapter, by name: the denoising network first, then the text encoders."""
    names = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    found = {name: getattr(pipeline, name, None) for name in names}
    return {name: part for name, part in found.items() if part is not None}


def _network(pipeline: DiffusionPipeline) -> torch.nn.Module:
    return next(iter(parts_of(pipeline).values()))


@contextmanager
def adapter_on(pipeline: DiffusionPipeline, adapter: str | None) -> Iterator[DiffusionPipeline]:
    """The pipeline with exactly one adapter on, or none; afterwards every adapter is off.

    Users share the edge's weights and an adapter is a switch on them, so one thread at a time has the pipeline; others
    wait for their turn. (Merged users have weights of their own, and wait for nobody.)
    """
    with _lock_of(pipeline):
        try:
            _switch(pipeline, adapter)
            yield pipeline
        finally:
            _switch(pipeline, None)


def _lock_of(pipeline: DiffusionPipeline) -> RLock:
    """The lock of a pipeline's denoiser; users that share it share the lock."""
    with _making_locks:
        return _locks.setdefault(_network(pipeline), RLock())


def _switch(pipeline: DiffusionPipeline, adapter: str | None) -> None:
    found = adapter is None
    for layer in [layer for part in parts_of(pipeline).values() for layer in _adapter_layers(part)]:
        mine = adapter is not None and adapter in layer.scaling
        if mine or not layer.disable_adapters:  # switching off what is off already costs milliseconds
            layer.enable_adapters(mine)
        if mine:
            layer.set_adapter(adapter)
        found |= mine
    if not found:
        raise ValueError(f"adapter={adapter!r} is not loaded in this pipeline")


def _adapter_layers(model: torch.nn.Module) -> list[BaseTunerLayer]:
    """The layers that hold adapters, remembered until another adapter comes or goes: a walk costs milliseconds."""
    names = tuple(getattr(model, "peft_config", ()))
    if model not in _adapted or _adapted[model][0] != names:
        _adapted[model] = names, [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return _adapted[model][1]


def load_pipeline(
    path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> DiffusionPipeline:
    """A pipeline of a class that ``families`` knows, from safetensors.

    Args:
        path: folder or hub name.
        dtype: of the weights; as stored if left out.
        device: where to put it.

    Raises:
        ValueError: if the path holds none, saying why.
    """
    a_path("path", path)
    as_asked = {} if dtype is None else {"dtype": dtype}
    if meta_path(Path(path) / HEAD).exists():  # a folder of this project says what each of its files was
        check_folder(Path(path))
    try:
        with quiet():
            name = DiffusionPipeline.load_config(path)["_class_name"]
            if name not in FAMILIES:
                known = ", ".join(FAMILIES)
                raise ValueError(f"it holds a {name}, which is of no known family; there are: {known}")
            if name == "StableDiffusionPipeline":
                as_asked |= {"safety_checker": None, "requires_safety_checker": False}
            pipeline = getattr(diffusers, name).from_pretrained(path, use_safetensors=True, **as_asked)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{str(path)!r} holds neither a pipeline in safetensors nor a LoRA adapter: {error}"
        ) from error
    return pipeline if device is None else pipeline.to(device)


def _is_adapter(path: str | Path) -> bool:
    if Path(path).exists():
        return _adapter_file(path).is_file()
    print(f"no folder {str(path)!r} here; it is looked for on the model hub", file=sys.stderr)
    try:
        return file_exists(str(path), ADAPTER_FILE)
    except Exception:  # no network, or no such name: loading it as a pipeline says which
        return False


def _adapter_file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_file():
        return path
    return next((path / name for name in (ADAPTER_FILE, _PEFT_FILE) if (path / name).is_file()), path / ADAPTER_FILE)


def adapter_name(user: str) -> str:
    """The name under which peft keeps a user's adapter: made from the user's, since peft gives words a meaning.

    It files adapters as attributes and splits their names, so that a user called "1", "weight" or "to_q" would collide
    with its own layers, and "ann-lee" with "ann_lee".
    """
    return "user_" + hashlib.sha256(user.encode(errors="surrogatepass")).hexdigest()[:12]


def add_adapter(pipeline: DiffusionPipeline, path: str | Path, user: str) -> str:
    """Load a user's LoRA into a pipeline, switched off.

    Args:
        pipeline: changed in place only if the whole adapter fits.
        path: folder, file or hub name, as diffusers or as peft writes adapters.
        user: the user's name.

    Returns:
        the adapter's name.

    Raises:
        ValueError: if it is not a LoRA for this model, if only a part of the file would be loaded, or if the file is
            not the one that its sidecar describes.
    """
    a_path("path", path)
    if not isinstance(user, str) or not user:
        raise ValueError(f"user={user!r} must be a name")
    file = _adapter_file(path if Path(path).exists() else hf_hub_download(str(path), ADAPTER_FILE))
    if meta_path(file).exists():
        read_meta(file)
    _check_adapter(pipeline, file)
    held, content = _contents.setdefault(_network(pipeline), {}), sha256(file)
    adapter, number = adapter_name(user), 1
    while _has_adapter(pipeline, adapter) and held.get(adapter) != content:  # another one of that name stays as it is
        number += 1
        adapter = f"{adapter_name(user)}_{number}"
    if _has_adapter(pipeline, adapter):
        return adapter
    try:
        with quiet():
            if file.name == _PEFT_FILE:
                network = _network(pipeline)
                network.add_adapter(LoraConfig.from_pretrained(file.parent), adapter)
                set_peft_model_state_dict(network, load_file(file), adapter)
            else:
                pipeline.load_lora_weights(str(file), adapter_name=adapter)
        _check_complete(pipeline, file, adapter)
    except (RuntimeError, ValueError, KeyError) as error:
        if _has_adapter(pipeline, adapter):
            pipeline.delete_adapters(adapter)
        raise ValueError(f"personal={file.parent.name!r} is not a LoRA for this model: {error}") from error
    _switch(pipeline, None)
    held[adapter] = content
    return adapter


def _has_adapter(pipeline: DiffusionPipeline, adapter: str) -> bool:
    return any(adapter in getattr(part, "peft_config", {}) for part in parts_of(pipeline).values())


def _check_complete(pipeline: DiffusionPipeline, file: Path, adapter: str) -> None:
    """Refuse a file of which only a part was loaded, or numbers that are none: neither would be said otherwise."""
    loaded: list[torch.Tensor] = []
    for part in parts_of(pipeline).values():
        if adapter in getattr(part, "peft_config", {}):
            loaded += get_peft_model_state_dict(part, adapter_name=adapter).values()
    with safe_open(file, "pt") as weights:
        listed = sum(".alpha" not in key for key in weights.keys())
    if len(loaded) != listed:
        raise ValueError(
            f"it lists {listed} tensors of which {len(loaded)} were loaded; its keys must follow one naming"
        )
    if any(tensor.is_meta or not torch.isfinite(tensor).all() for tensor in loaded):
        raise ValueError("a tensor was not loaded, or holds NaN or infinity")


def _merged(edge: DiffusionPipeline, path: str | Path, name: str) -> DiffusionPipeline:
    own = {part: copy.deepcopy(model) for part, model in parts_of(edge).items()}
    settings = set(inspect.signature(type(edge).__init__).parameters) & set(edge.config) - set(edge.components)
    pipeline = type(edge)(**{**edge.components, **own}, **{name: edge.config[name] for name in settings})
    adapter = add_adapter(pipeline, path, name)
    with adapter_on(pipeline, adapter):
        pipeline.fuse_lora(adapter_names=[adapter])
        pipeline.unload_lora_weights()
    return pipeline


def _check_adapter(pipeline: DiffusionPipeline, file: Path) -> None:
    """Refuse an adapter of another model before anything is changed."""
    if not hasattr(pipeline, "load_lora_weights"):
        kind = type(pipeline).__name__
        raise ValueError(f"personal={file.parent.name!r} is a LoRA, which diffusers does not load into a {kind}")
    layers = {
        f"{part}.{name}": module for part, model in parts_of(pipeline).items() for name, module in model.named_modules()
    }
    with safe_open(file, "pt") as weights:
        if not list(weights.keys()):
            raise ValueError(f"personal={file.parent.name!r} is not a LoRA for this model: it holds no tensor")
        for key in weights.keys():
            target, marker, rest = key.replace("base_model.model.", f"{next(iter(parts_of(pipeline)))}.").partition(
                ".lora_"
            )
            if marker and rest not in ("A.weight", "B.weight", "A.bias", "B.bias"):
                raise ValueError(
                    f"personal={file.parent.name!r} is not a LoRA for this model: {key} ends in {marker}{rest}; "
                    "valid are .lora_A.weight and .lora_B.weight"
                )
            if not marker or not rest.startswith("A"):
                continue
            module = layers.get(f"{target}.base_layer", layers.get(target))
            inputs = weights.get_slice(key).get_shape()[1]
            if module is None or module.weight.shape[1] != inputs:
                problem = (
                    "names no layer of it"
                    if module is None
                    else f"expects {inputs} inputs where the model has {module.weight.shape[1]}"
                )
                raise ValueError(f"personal={file.parent.name!r} is not a LoRA for this model: {key} {problem}")
