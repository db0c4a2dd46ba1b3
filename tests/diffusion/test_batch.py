from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitpoint.diffusion.batch import Request, StepBatch
from splitpoint.diffusion.families import family_of
from splitpoint.diffusion.packet import Packet

from .tiny_family import TinyFamily
from .tiny_pipeline import make_pipeline

FAMILY = TinyFamily()
PROMPTS = ("cat", "dog", "cow")

requests = st.builds(
    lambda prompt, seed, steps, left, guidance, scheduler: Request(
        prompt, seed, steps, min(left, steps - 1), guidance, scheduler
    ),
    st.sampled_from(PROMPTS),
    st.integers(0, 3),
    st.integers(1, 7),
    st.integers(0, 3),
    st.sampled_from([0.0, 1.5, 4.0]),
    st.sampled_from(TinyFamily.samplers),
)
# when a row comes, and what becomes of it: it reaches its stop, or after some steps it is cancelled, handed over or NaN
rows = st.tuples(
    requests, st.integers(0, 6), st.sampled_from(["stop", "stop", "cancel", "early", "nan"]), st.integers(0, 6)
)


@cache
def alone(key, size=None):
    """A request's packets after every step of a run of its own: step -> packet."""
    request = Request(*key)
    batch = StepBatch(FAMILY, size)
    row = batch.prepare(request)
    packets = {0: batch.snapshot(row)}
    batch.admit(row)
    while len(batch):
        batch.step()
        packets[row.step] = batch.snapshot(row)
    return packets


def key_of(request):
    return tuple(vars(request).values())[:-1]


def assert_same(packet, expected, exact=False):
    assert (packet.step, packet.prompt, packet.seed) == (expected.step, expected.prompt, expected.seed)
    assert len(packet.history) == len(expected.history)
    for one, other in zip((packet.latent, *packet.history), (expected.latent, *expected.history)):
        if one is None or exact:
            assert one is other is None or torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


def act(batch, row, fate, after, taken):
    """What becomes of a row at this boundary, if it is its time."""
    if row not in batch.rows or row.step != after:
        return
    if fate == "cancel":
        batch.release(row)
    elif fate == "early":
        taken[row] = batch.finish(row)
    elif fate == "nan":
        batch._settle()
        batch._latents[batch._slots.index(row)] = torch.nan


def run_schedule(plan, size=None):
    """Rows that come and go as planned; their packets by number, and the rows."""
    batch, taken, prepared = StepBatch(FAMILY, size), {}, {}
    for tick in range(20):
        for number, (request, arrival, _, _) in enumerate(plan):
            if arrival == tick:
                prepared[number] = batch.prepare(request)
                batch.admit(prepared[number])
        for number, row in prepared.items():
            act(batch, row, *plan[number][2:], taken)
        for row in batch.step().left:
            if row.error is None:
                taken[row] = batch.finish(row)
        if len(prepared) == len(plan) and not len(batch):
            break
    assert not len(batch)
    return prepared, taken


def check_schedule(plan, size=None):
    prepared, taken = run_schedule(plan, size)
    for number, (request, _, fate, after) in enumerate(plan):
        row, stop = prepared[number], request.num_steps - request.split_point
        if fate in ("cancel", "nan") and after < stop:
            assert row not in taken
            assert isinstance(row.error, FloatingPointError) == (fate == "nan")
            continue
        step = min(after, stop) if fate == "early" else stop
        assert_same(taken[row], alone(key_of(request), size)[step], exact=size is not None)


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=list(HealthCheck))
@given(st.lists(rows, min_size=1, max_size=8))
def test_every_row_is_what_it_would_have_been_alone(plan):
    check_schedule(plan)


@settings(max_examples=100)
@given(st.lists(rows, min_size=1, max_size=8))
def test_in_a_batch_of_fixed_shape_to_the_last_bit(plan):
    check_schedule(plan, size=8)


@settings(max_examples=100)
@given(requests, st.integers(0, 7), st.sampled_from([None, 3]))
def test_a_packet_goes_on_as_if_nothing_had_happened(request_, step, size):
    """Split equals unsplit to the last bit, for every sampler and split, under the same table and shape."""
    whole = Request(*key_of(request_)[:3], 0, *key_of(request_)[4:])
    packets = alone(key_of(whole), size)
    packet = Packet.from_bytes(packets[min(step, whole.num_steps)].to_bytes())
    batch = StepBatch(FAMILY, size)
    row = batch.prepare(packet)
    if row.remaining:
        batch.admit(row)
    while len(batch):
        batch.step()
    assert_same(batch.finish(row), packets[whole.num_steps], exact=True)


def test_rows_at_eight_steps_share_every_forward():
    family = TinyFamily()
    batch = StepBatch(family)
    for tick in range(8):
        batch.admit(batch.prepare(Request("cat", tick, 20, guidance_scale=0.0)))
        assert [row.step for row in batch.step().rows] == list(range(tick + 1, 0, -1))
    assert family.calls == [1, 2, 3, 4, 5, 6, 7, 8]


def test_only_guided_rows_are_computed_twice_and_a_fixed_shape_never_changes():
    for size, expected in ((None, [1, 3, 5]), (4, [8, 8, 8])):
        family = TinyFamily()
        batch = StepBatch(family, size)
        for guidance in (1.0, 2.0, 3.0):
            batch.admit(batch.prepare(Request("cat", 0, 9, guidance_scale=guidance)))
            batch.step()
        assert family.calls == expected


def test_a_row_that_left_is_not_touched_again_and_shares_no_memory():
    batch = StepBatch(FAMILY)
    first, second = (batch.prepare(Request("cat", seed, 9, 9 - steps, 0.0)) for seed, steps in ((1, 2), (2, 6)))
    batch.admit([first, second])
    batch.step()
    assert batch.step().left == [first]
    packet = batch.snapshot(first)
    kept = packet.latent.clone()
    packet.latent.zero_()
    while len(batch):
        batch.step()
    assert torch.equal(batch.finish(first).latent, kept)


@pytest.mark.parametrize("size", [None, 5])
def test_a_row_that_breaks_the_forward_leaves_alone(size):
    family = TinyFamily()
    family.broken = "dog"
    batch = StepBatch(family, size)
    plan = [Request(prompt, 7, 5, 0, 2.0, "dpmsolver++") for prompt in ("cat", "dog", "cow", "cat")]
    prepared = [batch.prepare(request) for request in plan]
    batch.admit(prepared[:3])
    assert batch.step().left == [prepared[1]] and "dog breaks" in str(prepared[1].error)
    batch.admit(prepared[3])
    family.calls.clear()
    while len(batch):
        batch.step()
    assert len(family.calls) == 5  # nothing is tried twice once the culprit is gone
    for row, request in zip(prepared, plan):
        if request.prompt != "dog":
            assert_same(batch.finish(row), alone(key_of(request), size)[5], exact=size is not None)
    with pytest.raises(ValueError, match="'dog' has failed: dog breaks"):
        batch.finish(prepared[1])


def test_a_network_that_always_fails_fails_every_row_and_raises_nothing():
    family = TinyFamily()
    batch = StepBatch(family)
    batch.admit([batch.prepare(Request("cat", seed)) for seed in range(3)])
    family.broken = "cat"
    left = batch.step().left
    assert len(left) == 3 and all("cat breaks" in str(row.error) for row in left) and not len(batch)
    assert batch.step().rows == []


def test_noise_comes_from_the_seed_alone():
    batch = StepBatch(FAMILY)
    first = batch.prepare(Request("cat", 5, 9))
    torch.manual_seed(99)
    again, other = batch.prepare(Request("dog", 5, 4, 0, 0.0)), batch.prepare(Request("cat", 6, 9))
    assert torch.equal(first.latent, again.latent) and not torch.equal(first.latent, other.latent)


def test_four_threads_may_prepare_while_one_steps():
    """With a real tokenizer, which two threads must not use at once."""
    family = family_of(make_pipeline())
    asked = [Request(PROMPTS[i % 3], i, 4, 0, 2.0, family.samplers[i % 3]) for i in range(24)]

    def alone(request):
        batch = StepBatch(family)
        batch.admit(row := batch.prepare(request))
        while len(batch):
            batch.step()
        return batch.finish(row)

    expected, batch, rows = [alone(request) for request in asked], StepBatch(family), {}
    with ThreadPoolExecutor(4) as pool:
        waiting = {pool.submit(batch.prepare, request): number for number, request in enumerate(asked)}
        for prepared in as_completed(waiting):
            rows[waiting[prepared]] = prepared.result()
            batch.admit(prepared.result())
            batch.step()
    while len(batch):
        batch.step()
    for number, packet in enumerate(expected):
        assert_same(batch.finish(rows[number]), packet)


def test_rows_are_admitted_once_and_only_where_there_is_room():
    batch = StepBatch(FAMILY, size=2)
    row, done = batch.prepare(Request("cat", 0, 3)), batch.prepare(Request("cat", 0, 3, 3))
    batch.admit(row)
    with pytest.raises(ValueError, match="in a batch already"):
        batch.admit(row)
    with pytest.raises(ValueError, match="no step to do here"):
        batch.admit(done)
    with pytest.raises(ValueError, match="2 rows; 1 of 2 places are free"):
        batch.admit([batch.prepare(Request("cat", seed)) for seed in (1, 2)])
    assert batch.finish(done).latent is None and len(batch) == 1
    batch.release(row)
    batch.release(row)
    with pytest.raises(ValueError, match="was released"):
        batch.finish(row)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(prompt=""), "prompt=''"),
        (dict(prompt="x" * 10_001), "10001 characters; at most 10000"),
        (dict(prompt="\ud800"), "half a character"),
        (dict(seed=-1), "seed=-1"),
        (dict(num_steps=0), "num_steps=0"),
        (dict(num_steps=10**9), "num_steps=1000000000"),
        (dict(split_point=51), "split_point=51"),
        (dict(guidance_scale=float("nan")), "guidance_scale=nan"),
    ],
)
def test_bad_requests_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Request(**{"prompt": "cat", **changes})


def test_samplers_and_options_that_the_family_does_not_know_are_refused():
    batch = StepBatch(FAMILY)
    with pytest.raises(ValueError, match="scheduler='pndm' is unknown; there are: ddim"):
        batch.prepare(Request("cat", scheduler="pndm"))
    with pytest.raises(ValueError, match="scheduler_options holds 'karras'"):
        batch.prepare(Request("cat", scheduler_options={"karras": 1}))
