"""Random input for the tests: values as people pass them, and odd ones; what an error may be."""

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("RANDOM_CASES", "100"))  # `make test-slow` asks for a thousand


def robust(test):
    """A test of `CASES` random inputs, the same each time: one that fails fails again."""
    checks = list(HealthCheck)
    how = settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=checks,
    )
    return pytest.mark.random(how(test))


outcomes: Counter[str] = Counter()  # of the test that runs: inputs tried and accepted

small = st.integers(-2, 40)
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(small, max_size=3),
    st.dictionaries(small, small, max_size=2),
    st.sampled_from([np.nan, np.float32(0.5), np.array([1, 2]), torch.zeros(2), object(), len]),
)


def rarely(other: st.SearchStrategy, usual: st.SearchStrategy) -> st.SearchStrategy:
    """The other values once in about ten times."""
    return st.integers(0, 9).flatmap(lambda n: other if n == 9 else usual)


def mostly(usual: st.SearchStrategy) -> st.SearchStrategy:
    """The usual values, as plain numbers, NumPy's or torch's, and an odd one now and then."""
    return rarely(odd, st.one_of(usual, usual.map(np.array), usual.map(torch.tensor)))


def random_states() -> list:
    """The states of the three global generators."""
    numpy = np.random.get_state()
    parts = torch.get_rng_state().numpy().tobytes(), numpy[1].tobytes(), numpy[2:]
    return [*parts, random.getstate()]


@contextmanager
def only(*kinds: type[Exception]) -> Iterator[None]:
    """Inside, nothing is raised but these, with words, and no global random state moves."""
    before = random_states()
    outcomes["tried"] += 1
    said = None
    try:
        yield
    except kinds as error:
        said = str(error)
    else:
        outcomes["accepted"] += 1
    assert said is None or len(said) > 20
    assert random_states() == before
