from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from recurra.data.dataset import Dataset

from .small_datasets import new_url, write_lengths


@pytest.fixture
def make() -> Callable[..., Dataset]:
    """Writes a dataset of given lengths to a place of its own."""

    def build(lengths: Sequence[int], **sizes: int) -> Dataset:
        return write_lengths(new_url(), lengths, **sizes)

    return build


@pytest.fixture(scope="session")
def mixed() -> Dataset:
    """300 sequences of 1 to 60 steps, some of them larger than a block."""
    lengths = np.random.default_rng(7).integers(1, 61, 300).tolist()
    return write_lengths(new_url(), lengths)
