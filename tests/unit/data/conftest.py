from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from recurra.data.dataset import Dataset

from .small_datasets import write_lengths


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Dataset]:
    """Writes a dataset of given lengths to a place of its own."""

    def build(lengths: Sequence[int], **sizes: int) -> Dataset:
        return write_lengths(f"file://{tempfile.mkdtemp(dir=tmp_path)}", lengths, **sizes)

    return build


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """300 sequences of 1 to 60 steps, some of them larger than a block."""
    lengths = np.random.default_rng(7).integers(1, 61, 300).tolist()
    return write_lengths(f"file://{tmp_path_factory.mktemp('mixed')}", lengths)
