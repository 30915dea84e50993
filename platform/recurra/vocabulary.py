"""Names of units and axes. Imports nothing of ours.

Axis letters, used as suffixes of array names (`x_BTD` has batch, time and feature axes):

    B  batch (sequences)      H  hidden units           N  memory rows of an NTM
    T  time steps             L  layers                 M  width of a memory row
    D  input features         K  outputs of the head    R  read heads, W write heads
    Q  quantiles              F  forecast horizon       S  slots of a serving engine
"""

from typing import NewType

Step = NewType("Step", int)
"""Optimizer updates since the start of a run; the first update makes it 1."""

Epoch = NewType("Epoch", int)
"""Passes over the training dataset that have ended; 0 during the first."""

SampleId = NewType("SampleId", int)
"""Position of a sequence in its dataset, 0-based, in manifest order; -1 marks a filler row."""

Rank = NewType("Rank", int)
"""Index of one training process, 0 to world size - 1."""

Digest = NewType("Digest", str)
"""SHA-256 in lower-case hexadecimal, 64 characters."""

FORMAT_VERSION = 1
"""Version of everything that is written to the store: manifests, checkpoints, bundles, snapshots."""
