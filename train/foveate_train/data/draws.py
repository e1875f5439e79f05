"""Random numbers that are known by what they are for, not by what was drawn before.

Every epoch and every step draws from a generator of its own, so that a run can
be taken up anywhere and go on as it would have.
"""

import numpy as np
import torch


def derive(seed: int, *purpose: int) -> int:
    """Return a seed, 0 to 2^63 - 1, for one purpose, such as an epoch and a step."""
    state = np.random.SeedSequence([seed, *purpose]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(seed: int, *purpose: int) -> torch.Generator:
    """Return a generator on the CPU for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
