"""Bad input of the public functions of the picture room: refused by name before any work. Nothing is loaded per case."""

from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import torch

from splitpoint.diffusion import sampler
from splitpoint.diffusion.accuracy import Calibration, measure_pai, summarize_pai
from splitpoint.diffusion.batch import Request, StepBatch
from splitpoint.diffusion.emoji import known_concepts, load_emoji
from splitpoint.diffusion.families import family_of
from splitpoint.diffusion.hybrid import HybridPipeline, hybrid_generate
from splitpoint.diffusion.mini import draw, load_mini
from splitpoint.diffusion.packet import Packet
from splitpoint.diffusion.profile import profile_step_latency
from splitpoint.diffusion.users import User, add_adapter, load_users

from ..test_public_face import NAMES, NUMBERS, OBJECTS, WHOLE, answered
from .tiny_family import TinyFamily
from .tiny_pipeline import make_pipeline

EDGE = make_pipeline()
HYBRID = HybridPipeline(EDGE, {"me": User("me", EDGE), "you": User("you", EDGE)}, num_steps=4)
PACKET = Packet("cat", 0, 2, 4, 1.0, "ddim", HYBRID.scheduler_config, HYBRID.model, torch.zeros(4, 8, 8))
PROMPTS = [None, 3, b"cat", "", " ", "\ud800", "x" * 10_001, object(), float("nan"), ["cat", None], [[]], {}, True]
WORDS = [None, 3, b"cat", object(), ["nothing"], "", [None], {}, True, [], float("nan")]
MANY = [
    None,
    "x",
    "1",
    1.5,
    -1,
    10**400,
    float("nan"),
    True,
    [1, "x"],
    [1, 1.5],
    [],
    {},
    object(),
    1 + 2j,
    [None],
    [[1]],
]
SPLITS = [*MANY, 5, [0, 5]]
MAPPINGS = [5, "x", [1], {"nothing": 1}, {1: 2}, object(), {"beta_end": float("nan")}, {"clip_sample": True}]
REQUEST = dict(prompt="cat")
RUN = dict(prompts="cat", users="me", split_points=2)
PAI = dict(
    prompts=["cat"],
    users=["me", "you"],
    split_points=[0],
    hybrid=HYBRID,
    judges=object(),
    calibration=Calibration(1, 1),
)
TABLE = pd.DataFrame({"prompt": ["a", "b"], "split_point": [0, 0], "pai": [0.1, 0.2]})

#: function, arguments that are fine, and for each of some arguments what is not
FACE = [
    (Request, REQUEST, dict(
        prompt=PROMPTS, seed=[*WHOLE, 2**63], num_steps=[*WHOLE, 0, 1001], split_point=[*WHOLE, 51], guidance_scale=NUMBERS,
        scheduler=NAMES, scheduler_options=[*MAPPINGS[:3], None, object()])),
    (StepBatch, dict(family=TinyFamily()), dict(size=[n for n in [*WHOLE, 0] if n is not None])),
    (sampler.scheduler_settings, dict(sampler="ddim", own={}), dict(sampler=NAMES, options=MAPPINGS)),
    (sampler.step_table, dict(sampler="ddim", settings={}, num_steps=4), dict(sampler=NAMES, num_steps=[*WHOLE, 0])),
    (Packet.from_bytes, dict(content=b""), dict(content=[None, 3, "x", b"", b"SPLITPT1", [b"x"], object(), PACKET, True, {}])),
    (PACKET.astype, dict(dtype="float32"), dict(dtype=NAMES)),
    (HybridPipeline, dict(pipeline=EDGE, users={}), dict(
        pipeline=OBJECTS, num_steps=[*WHOLE, 0], scheduler=NAMES, scheduler_options=MAPPINGS, guidance_scale=NUMBERS,
        packet_dtype=NAMES, max_batch=[n for n in [*WHOLE, 0] if n is not None], users=[None, 5, "x", [1], {"me": 1}, object()])),
    (HYBRID.edge_phase, dict(prompts="cat", split_points=2), dict(
        prompts=PROMPTS, split_points=SPLITS, seed=MANY, batching=NAMES)),
    (HYBRID.generate, RUN, dict(prompts=PROMPTS, split_points=SPLITS, seed=MANY, users=WORDS, batching=NAMES)),
    (HYBRID.compare, dict(prompt="cat", users=["me"], split_points=[1]), dict(
        prompt=[p for p in PROMPTS if not isinstance(p, (list, dict))], users=WORDS, split_points=SPLITS, seed=MANY)),
    (HYBRID.device_latents, dict(packets=[PACKET], user="me"), dict(packets=[*OBJECTS, [None], ["x"]], user=WORDS)),
    (HYBRID.device_phase, dict(packet=PACKET, user="me"), dict(packet=OBJECTS, user=WORDS)),
    (hybrid_generate, RUN | dict(pipeline=EDGE, users=User("me", EDGE), num_steps=4), dict(
        prompts=PROMPTS, split_points=SPLITS, seed=MANY, num_steps=[*WHOLE, 0], guidance_scale=NUMBERS[1:], scheduler=NAMES,
        packet_dtype=NAMES, pipeline=OBJECTS[1:])),
    (family_of, dict(pipeline=EDGE), dict(pipeline=OBJECTS)),
    (load_users, dict(base=EDGE, personal=["none"]), dict(
        base=[None, 5, {}, [], object(), len, float("nan"), np.zeros(2), (1, 2)], personal=[None, 5, "x", {}, [], [None], [3], {"me": 3}, {"me": None}, {3: "x"}, object(), {"": "x"}])),
    (add_adapter, dict(pipeline=EDGE, path="none", user="me"), dict(user=[None, 3, "", b"x", []])),
    (profile_step_latency, dict(device="cpu"), dict(
        architecture=NAMES, batch_sizes=[None, "x", 3, [], [0], [1.5], [True], ["1"], {}, object(), [[1]]], dtype=NAMES, mode=NAMES,
        repeats=[*WHOLE, 0], warmups=WHOLE, device=NAMES[1:], guidance=[None, "x", 2, [], object()])),
    (measure_pai, PAI, dict(
        prompts=PROMPTS, users=[*WORDS, ["me"], ["me", "zoe"], ["me", "me"]], split_points=SPLITS, seeds=MANY, hybrid=OBJECTS[1:])),
    (summarize_pai, dict(table=TABLE), dict(table=OBJECTS, value=NAMES, resamples=[*WHOLE, 0], seed=WHOLE)),
    (Calibration, dict(real_score=1.0, real_distance=1.0), dict(real_score=[*NUMBERS, 0], real_distance=[*NUMBERS, 0])),
    (load_emoji, {}, dict(styles=WORDS, concepts=WORDS[1:])),
    (known_concepts, {}, dict(styles=WORDS)),
    (load_mini, {}, dict(folder=[3, "nowhere", b"x", object(), [], True])),
    (draw, dict(pipe=EDGE, prompts="cat", seeds=[0]), dict(
        prompts=PROMPTS, seeds=MANY, num_steps=[*WHOLE, 0], guidance_scale=NUMBERS, batch=[*WHOLE, 0])),
]  # fmt: skip


def named(function, fine, argument, value) -> str | None:
    """As ``answered``; a TypeError that names the argument is an answer, too."""
    said = answered(function, fine, argument, value)
    return None if said and said.startswith("TypeError") and argument in said else said


@pytest.mark.filterwarnings("ignore")
def test_bad_input_is_refused_by_name_before_the_network_runs():
    wrong, calls, count = defaultdict(list), [], 0
    hook = EDGE.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    for function, fine, bad in FACE:
        for argument, values in bad.items():
            for value in values:
                count += 1
                calls.clear()
                said = named(function, fine, argument, value)
                if said or calls:
                    name = getattr(function, "__qualname__", str(function))
                    wrong[f"{name}({argument})"].append(f"{value!r:.40} -> {said!s:.90}")
    hook.remove()
    assert count >= 900
    assert not wrong, f"{sum(map(len, wrong.values()))} of {count}:\n" + "\n".join(
        f"{name}: {len(said)}: " + " | ".join(said[:20]) for name, said in wrong.items()
    )


def test_what_is_fine_is_accepted():
    assert HYBRID.generate(**RUN).latents.shape == (1, 4, 8, 8)
    assert HYBRID.edge_phase(["cat"], np.array([1, 2]), np.int64(3))[1].step == 2
    assert len(summarize_pai(TABLE, resamples=10)) == 1
    assert draw(EDGE, "cat", range(2), 2, batch=1).shape == (2, 16, 16, 3)
