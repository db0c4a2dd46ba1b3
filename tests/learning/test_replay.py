import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from splitpoint.learning import PrioritizedReplay, SumTree

SPACES = spaces.Box(-1e6, 1e6, (1,), np.float32), spaces.Discrete(2)


def filled(steps=50, n_envs=4, ends=lambda step, row: (step + row) % 5 == 4, **options):
    """Transitions whose observation is their number, reward 1."""
    replay = PrioritizedReplay(steps * n_envs, *SPACES, n_envs=n_envs, **options)
    for step in range(steps):
        number = (step * n_envs + np.arange(n_envs, dtype=np.float32))[:, None]
        done = np.array([ends(step, row) for row in range(n_envs)])
        replay.add(number, number + n_envs, np.zeros((n_envs, 1)), np.ones(n_envs), done, [{}] * n_envs)
    return replay


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=70), st.data())
def test_sums_hold_after_any_updates(priorities, data):
    tree = SumTree(len(priorities))
    tree.update(np.arange(len(priorities)), priorities)
    index = data.draw(st.lists(st.integers(0, len(priorities) - 1), unique=True))
    tree.update(np.array(index, int), np.full(len(index), 2.0))
    expected = np.array(priorities)
    expected[index] = 2.0
    assert tree.leaves == pytest.approx(expected)
    assert tree.total == pytest.approx(expected.sum())
    if tree.total > 0:
        mass = np.linspace(0, tree.total, 33)
        found = tree.find(mass)
        assert np.all(expected[found] > 0)
        before = np.concatenate([[0], np.cumsum(expected)])
        slack = 1e-9 * tree.total
        assert np.all(before[found] <= mass + slack) and np.all(mass <= before[found + 1] + slack)


def test_transitions_are_drawn_in_proportion_to_their_priorities():
    replay = filled(seed=3, alpha=0.7)
    errors = np.random.default_rng(0).exponential(size=200)
    replay.update_priorities(np.arange(200), errors)
    expected = (errors + 1e-4) ** 0.7
    # one draw per batch: draws within a batch are stratified, so a test of independent draws would not hold
    drawn = np.concatenate([replay.draw(1, 1.0)[0] for _ in range(10_000)])
    counts = np.bincount(drawn, minlength=200)
    assert stats.chisquare(counts, expected / expected.sum() * 10_000).pvalue > 1e-3
    assert stats.chisquare(counts).pvalue < 1e-6


def test_alpha_zero_is_uniform():
    replay = filled(alpha=0.0)
    replay.update_priorities(np.arange(200), np.arange(200.0))
    index, weights = replay.draw(200, 1.0)
    assert np.bincount(index, minlength=200).tolist() == [1] * 200
    assert weights == pytest.approx(np.ones(200))


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_follow_the_formula(beta):
    replay = filled(alpha=0.6)
    errors = np.random.default_rng(1).exponential(size=200)
    replay.update_priorities(np.arange(200), errors)
    probability = (errors + 1e-4) ** 0.6 / ((errors + 1e-4) ** 0.6).sum()
    index, weights = replay.draw(64, beta)
    expected = (200 * probability[index]) ** -beta
    assert weights == pytest.approx(expected / expected.max())


def test_full_correction_removes_the_bias():
    replay = filled(alpha=0.9, seed=5)
    replay.update_priorities(np.arange(200), np.random.default_rng(1).exponential(size=200))
    index, weights = replay.draw(200_000, 1.0)
    assert np.average(index, weights=weights) == pytest.approx(np.arange(200).mean(), rel=0.01)


def test_two_buffers_give_an_eighth_of_ends():
    replay = filled(two_buffers=True)
    for _ in range(5):
        batch = replay.sample(64, beta=1.0)
        assert int(batch.dones.sum()) == 8
        replay.update_priorities(batch.index, np.ones(64))


def test_weights_of_two_buffers_are_those_of_the_buffer_drawn_from():
    replay = filled(two_buffers=True, alpha=0.6)
    errors = np.random.default_rng(1).exponential(size=200)
    replay.update_priorities(np.arange(200), errors)
    ended, priority = replay.dones.reshape(-1) > 0, (errors + 1e-4) ** 0.6
    own = np.where(ended, ended.sum() / priority[ended].sum(), (~ended).sum() / priority[~ended].sum())
    index, weights = replay.draw(64, 0.4)
    expected = (own * priority)[index] ** -0.4
    assert weights == pytest.approx(expected / expected.max())


def test_without_ends_the_whole_batch_comes_from_the_others():
    replay = filled(two_buffers=True, ends=lambda step, row: False)
    assert replay.sample(64).dones.sum() == 0 and len(replay.sample(64).index) == 64


@given(st.integers(1, 5), st.integers(0, 49), st.integers(0, 3))
@example(5, 48, 2)  # the newest transitions are followed by the oldest, not by what came next
def test_n_step_sums_stop_at_the_end_of_an_episode(n_steps, step, row):
    replay = filled(n_steps=n_steps)
    replay.trees[0].update(np.arange(200), np.zeros(200))
    replay.trees[0].update([step * 4 + row], [1.0])
    batch = replay.sample(1)
    to_end = (4 - step - row) % 5 + 1
    length = min(n_steps, to_end, 50 - step)
    assert batch.rewards.item() == length
    assert batch.next_observations.item() == (step + length) * 4 + row
    assert bool(batch.dones.item()) == (length == to_end)


def test_new_transitions_have_the_largest_priority_so_far():
    replay = filled(steps=50, alpha=0.5)
    replay.update_priorities([7, 8], [50.0, 2.0])
    more = np.zeros((4, 1), np.float32)
    replay.add(more, more, more, np.ones(4), np.zeros(4), [{}] * 4)
    assert replay.trees[0].leaves[:4] == pytest.approx((50 + 1e-4) ** 0.5)
    assert replay.trees[0].leaves[4:7] == pytest.approx(1)


def test_old_transitions_are_overwritten():
    replay = filled(steps=50)
    more = np.full((4, 1), 9999, np.float32)
    replay.add(more, more, np.zeros((4, 1)), np.ones(4), np.zeros(4), [{}] * 4)
    index, _ = replay.draw(2000, 0.0)
    assert {0, 1, 2, 3} <= set(index)
    assert (replay.observations.reshape(-1)[:4] == 9999).all()


def test_a_restored_buffer_draws_the_same():
    replay = filled(two_buffers=True, seed=1)
    replay.update_priorities(np.arange(200), np.arange(200.0))
    arrays, rest = replay.state()
    drawn = replay.sample(64, beta=0.5)
    replay.update_priorities(np.arange(200), np.ones(200))  # the state taken before must not go on with it
    other = PrioritizedReplay(200, *SPACES, n_envs=4, two_buffers=True, seed=77)
    other.restore(arrays, rest)
    for ours, theirs in zip(drawn, other.sample(64, beta=0.5)):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: SumTree(0), "capacity=0"),
        (lambda: SumTree(4).update([4], [1.0]), "index holds 4"),
        (lambda: SumTree(4).update([0], [np.nan]), "priority holds nan"),
        (lambda: filled(alpha=2), "alpha=2"),
        (lambda: filled().draw(8, 1.5), "beta=1.5"),
        (lambda: filled().draw(0, 0.5), "batch_size=0"),
        (lambda: filled().update_priorities([0], [np.nan]), "errors holds nan"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()
