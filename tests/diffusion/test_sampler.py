import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitpoint.diffusion.sampler import SAMPLERS, Rule, advance, rule_of, scheduler_settings, step_table

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SPACINGS = [{"timestep_spacing": name} for name in ("leading", "trailing", "linspace")]
SIGMAS = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]
ENDS = [
    {"solver_order": 1},
    {"solver_type": "heun"},
    {"final_sigmas_type": "sigma_min"},
    {"euler_at_final": True},
    {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
]
OPTIONS = {
    "ddim": SPACINGS,
    "euler": SPACINGS + SIGMAS,
    "dpmsolver++": SPACINGS + SIGMAS + ENDS,
    "flow_euler": [{}, {"shift": 3.0}],
}
CASES = [
    (sampler, prediction, options)
    for sampler in SAMPLERS
    for prediction in (("flow",) if sampler == "flow_euler" else ("epsilon", "v_prediction", "sample"))
    for options in OPTIONS[sampler]
]
MIXING = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4


def network(latents, timestep):
    return torch.tanh(latents.flatten(1) @ MIXING + 0.001 * timestep).reshape(latents.shape)


def run_both(sampler, prediction, options, num_steps):
    """A run through diffusers' scheduler object, and the same through the table."""
    own = SCHEDULE if prediction == "flow" else SCHEDULE | {"prediction_type": prediction}
    settings = scheduler_settings(sampler, own, options)
    scheduler, table = SAMPLERS[sampler][0](**settings), step_table(sampler, settings, num_steps)
    scheduler.set_timesteps(num_steps)
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    theirs = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    ours, clean = noise * table.start_scale, torch.zeros_like(noise)
    for step, timestep in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(theirs, timestep) if hasattr(scheduler, "scale_model_input") else theirs
        theirs = scheduler.step(network(inputs, timestep), timestep, theirs, return_dict=False)[0]
        rule = rule_of(table.values[step].expand(2, -1), 4)
        ours, clean = advance(ours, network(ours / rule.scale, rule.timestep.flatten()[0]), clean, rule)
    return ours, theirs


@pytest.mark.parametrize("num_steps", [1, 2, 6, 14, 15, 50])
@pytest.mark.parametrize("sampler, prediction, options", CASES)
def test_a_table_gives_the_latents_of_diffusers_own_scheduler(sampler, prediction, options, num_steps):
    ours, theirs = run_both(sampler, prediction, options, num_steps)
    if (sampler, prediction) == ("euler", "v_prediction"):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * theirs.abs().max().item())
    else:
        assert torch.equal(ours, theirs)


@given(st.data())
def test_rows_at_any_steps_of_any_samplers_advance_as_each_alone(data):
    rows = data.draw(st.lists(st.tuples(st.sampled_from(sorted(OPTIONS)), st.integers(2, 20)), min_size=1, max_size=6))
    tables = [step_table(sampler, scheduler_settings(sampler, SCHEDULE), steps) for sampler, steps in rows]
    steps = [data.draw(st.integers(0, steps - 1)) for _, steps in rows]
    values = torch.stack([table.values[step] for table, step in zip(tables, steps)])
    x, output, previous = torch.randn(3, len(rows), 1, 4, 4, generator=torch.Generator().manual_seed(0))
    together = advance(x, output, previous, rule_of(values, 4))
    for i in range(len(rows)):
        alone = advance(x[i : i + 1], output[i : i + 1], previous[i : i + 1], rule_of(values[i : i + 1], 4))
        for one, other in zip(together, alone):
            assert torch.equal(one[i : i + 1], other)


def test_only_two_step_rules_remember_and_not_at_either_end():
    tables = {name: step_table(name, {}, 20) for name in SAMPLERS}
    assert {name: sum(table.remembers) for name, table in tables.items()} == {
        "ddim": 0,
        "euler": 0,
        "dpmsolver++": 18,  # not before the first step, nor before the last, which is of first order
        "flow_euler": 0,
    }
    first_order = step_table("dpmsolver++", {"solver_order": 1}, 20)
    assert not any(first_order.remembers) and len(first_order.remembers) == 21


def test_half_precision_latents_keep_their_type():
    rule = rule_of(step_table("ddim", {}, 10).values[:2], 4)
    latents, clean = advance(torch.ones(2, 1, 4, 4).bfloat16(), torch.ones(2, 1, 4, 4).bfloat16(), None, rule)
    assert latents.dtype == torch.bfloat16 and clean.dtype == torch.float32


@pytest.mark.parametrize(
    "sampler, settings, message",
    [
        ("pndm", {}, "sampler='pndm' is unknown"),
        ("ddim", {"nonsense": 1}, "nonsense"),
        ("ddim", {"prediction_type": "rubbish"}, "prediction_type='rubbish'"),
        ("ddim", {"beta_end": float("nan")}, "divides by zero|NaN|nan"),
        ("dpmsolver++", {"solver_order": 3}, "solver_order=3 is not 1 or 2"),
        ("euler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "Only one of"),
        ("flow_euler", {"use_dynamic_shifting": True}, "mu"),
        ("ddim", {"num_train_timesteps": 5}, "gives no run of 10 steps"),
    ],
)
def test_settings_that_give_no_run_are_refused(sampler, settings, message):
    with pytest.raises(ValueError, match=message):
        step_table(sampler, settings, 10)


def test_options_replace_the_pipelines_own_settings_and_unknown_ones_are_refused():
    own = SCHEDULE | {"timestep_spacing": "leading", "clip_sample": True, "of_another_class": 1}
    assert scheduler_settings("ddim", own, {"timestep_spacing": "trailing"})["timestep_spacing"] == "trailing"
    assert scheduler_settings("ddim", own)["clip_sample"] is False
    json.dumps(scheduler_settings("dpmsolver++", own))
    with pytest.raises(ValueError, match="scheduler_options holds 'karras'"):
        scheduler_settings("ddim", own, {"karras": True})
    with pytest.raises(ValueError, match="scheduler_options holds 'clip_sample'"):
        scheduler_settings("ddim", own, {"clip_sample": True})


def test_a_rule_names_every_column_of_a_table():
    assert len(Rule._fields) == step_table("ddim", {}, 3).values.shape[1] == 14
