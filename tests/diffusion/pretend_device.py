"""A pretend accelerator for machines without one: its tensors compute on the processor, and refuse to mix with others.

On a real accelerator an operation on tensors of two devices is an error; on a processor alone nothing can go wrong.
``with PretendDevice():`` makes ``torch.device("pretend")`` a place like any other, with that error. It registers a
backend with the whole process, so it runs in one of its own (``test_devices.py``).
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("pretend", backend_module=_Module())
PRETEND = torch.device("pretend:0")
MAY_MIX = ("aten::copy_", "aten::_to_copy", "aten::index")  # a copy between devices, and indices that may lie anywhere


class There(torch.Tensor):
    """A tensor on the pretend device; ``here`` is what it holds."""

    @staticmethod
    def __new__(cls, here: torch.Tensor):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            dtype=here.dtype,
            storage_offset=here.storage_offset(),
            device=PRETEND,
        )
        tensor.here = here
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    name = function._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    strangers = [x for x in tensors if not isinstance(x, There) and x.dim() > 0]  # a number may come from anywhere
    if there and strangers and not name.startswith(MAY_MIX):
        raise RuntimeError(f"{name} mixes devices")
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = {**kwargs, "device": "cpu" if torch.device(asked).type == "pretend" else asked}
    result = function(*tree_map(_here, args), **tree_map(_here, kwargs))
    if name.endswith("_") and isinstance(args[0], torch.Tensor):  # in place
        return args[0]
    if not (torch.device(asked).type == "pretend" if asked is not None else there):
        return result
    known = {id(x.here): x for x in there}
    return tree_map(lambda x: known.get(id(x)) or There(x) if isinstance(x, torch.Tensor) else x, result)


def _here(value):
    return value.here if isinstance(value, There) else value
