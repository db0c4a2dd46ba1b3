"""Random instances for property tests."""

import numpy as np
from hypothesis import strategies as st

from splitpoint.offloading import AccuracyModel, SystemParameters, sample_instance


@st.composite
def instances(draw, max_users=8, min_users=1, concave=False):
    """Windows under random parameters, both transmissions, few and many steps on the device."""
    num_steps = draw(st.integers(20, 300))
    midpoint = draw(st.floats(-20, num_steps * 1.2))
    lowest = min(num_steps, max(0, int(np.ceil(midpoint)))) if concave else 0
    parameters = SystemParameters(
        num_steps=num_steps,
        min_split=draw(st.integers(lowest, num_steps)),
        max_batch=draw(st.integers(1, 18)),
        intermediate_bits=draw(st.floats(0, 1e7)),
        transmission=draw(st.sampled_from(["released", "corrected"])),
        accuracy=AccuracyModel(draw(st.floats(0.005, 0.5)), midpoint),
    )
    users, gpus = draw(st.integers(min_users, max_users)), draw(st.integers(1, 32))
    return sample_instance(users, gpus, np.random.default_rng(draw(st.integers(0, 2**32 - 1))), parameters)
