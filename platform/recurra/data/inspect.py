"""What `recurra data inspect` shows: facts about a dataset as plain structures, without printing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.data.buckets import BucketPlan
from recurra.data.dataset import Dataset
from recurra.data.plan import PlanOptions
from recurra.data.vocabulary import Vocabulary
from recurra.errors import DataError

BATCH_SIZES = (16, 64, 256)
_BARS = 12
_MAX_WINDOWS = 8
"""Windows of a bucket plan that are measured; the others are alike."""
_SHOWN_STEPS = 16
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Waste:
    """Share of padding among the steps of all batches, in [0, 1]; `random` is what batches of arbitrary sequences pad."""

    mode: str
    batch_sequences: int
    share: float


@dataclass(frozen=True)
class LengthBar:
    """Sequences of `low` to `high` steps, both included."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class DatasetReport:
    """A dataset at a glance."""

    url: str
    version: int
    digest: str
    columns: list[dict[str, Any]]
    metadata: dict[str, str]
    """One line for each key."""
    sequences: int
    steps: int
    bytes: int
    shards: int
    blocks: int
    shortest: int
    median: int
    p95: int
    """Length that 95 % of the sequences do not exceed."""
    longest: int
    lengths: list[LengthBar]
    waste: list[Waste]
    samples: list[dict[str, str]]


def inspect_dataset(dataset: Dataset, samples: int = 3) -> DatasetReport:
    """Everything but the samples comes from the manifest and the side index; reads a few blocks for the samples."""
    lengths = dataset.lengths()
    manifest = dataset.manifest
    return DatasetReport(
        url=dataset.url,
        version=dataset.version,
        digest=dataset.digest,
        columns=dataset.schema.to_json(),
        metadata={key: _short(value) for key, value in dataset.metadata.items()},
        sequences=dataset.sequences,
        steps=dataset.steps,
        bytes=sum(shard.bytes for shard in manifest.shards),
        shards=len(manifest.shards),
        blocks=len(manifest.blocks),
        shortest=int(lengths.min()),
        median=int(np.median(lengths)),
        p95=int(np.quantile(lengths, 0.95)),
        longest=int(lengths.max()),
        lengths=length_bars(lengths),
        waste=padding_waste(dataset, lengths),
        samples=[sample_row(dataset, number) for number in _spread(dataset.sequences, samples)],
    )


def length_bars(lengths: NDArray[np.uint32], bars: int = _BARS) -> list[LengthBar]:
    """A histogram with bars of equal ratio; neighbours meet without a gap."""
    low, high = int(lengths.min()), int(lengths.max())
    edges = np.unique(np.round(np.geomspace(low, high + 1, bars + 1)).astype(np.int64))
    counts, _ = np.histogram(lengths, edges)
    return [
        LengthBar(int(left), int(right) - 1, int(count))
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def padding_waste(
    dataset: Dataset, lengths: NDArray[np.uint32], batch_sizes: tuple[int, ...] = BATCH_SIZES
) -> list[Waste]:
    """Padding of each mode at some batch sizes; `random` is what batches of arbitrary sequences would pad."""
    found = []
    for size in batch_sizes:
        found.append(Waste("random", size, _random_waste(lengths, size)))
        found.append(Waste("buckets", size, _bucket_waste(dataset, size)))
        found.append(Waste("lanes", size, _lane_waste(dataset.steps, size)))
        found.append(Waste("packed", size, _lane_waste(dataset.steps, size)))
    return found


def sample_row(dataset: Dataset, number: int) -> dict[str, str]:
    """One sequence, each column as a short text; tokens are decoded when the vocabulary is known."""
    row = {"id": str(number)}
    vocabulary = dataset.metadata.get("vocabulary")
    for name, value in dataset[number].items():
        if name == "tokens" and vocabulary is not None:
            row[name] = _short(Vocabulary.from_json(vocabulary).decode(value[: 4 * _SHOWN_CHARACTERS].tolist()))
        elif isinstance(value, np.ndarray):
            shown = ", ".join(str(item) for item in value[:_SHOWN_STEPS].tolist())
            row[name] = f"[{shown}{', …' if len(value) > _SHOWN_STEPS else ''}] {list(value.shape)}"
        else:
            row[name] = _short(value.item() if isinstance(value, np.generic) else value)
    labels = dataset.metadata.get("labels")
    if labels and "label" in row:
        row["label"] = f"{row['label']} ({labels[int(row['label'])]})"
    return row


def _random_waste(lengths: NDArray[np.uint32], size: int) -> float:
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(lengths))
    cuts = np.arange(0, len(lengths), size)
    longest = np.maximum.reduceat(lengths[order], cuts).astype(np.int64)
    rows = np.diff(np.append(cuts, len(lengths)))
    return 1 - int(lengths.sum(dtype=np.int64)) / int((longest * rows).sum())


def _bucket_waste(dataset: Dataset, size: int) -> float:
    plan = BucketPlan(dataset.manifest, PlanOptions("buckets", batch_sequences=size), dataset.index)
    order = plan.order(0)
    real = padded = 0
    for number in range(min(plan.windows, _MAX_WINDOWS)):
        window = plan.window(order, 0, number)
        real += int(window.tokens.sum())
        padded += int((window.longest * np.diff(window.cuts)).sum())
    return 1 - real / padded


def _lane_waste(steps: int, lanes: int) -> float:
    """The last lanes may run out earlier than the first."""
    return 1 - steps / (-(-steps // lanes) * lanes)


def _spread(count: int, wanted: int) -> list[int]:
    return sorted({number * (count - 1) // max(1, wanted - 1) for number in range(min(count, wanted))})


def _short(value: Any) -> str:
    if isinstance(value, dict) and "kind" in value:
        try:
            return f"{value['kind']}, {Vocabulary.from_json(value).size} ids"
        except DataError:
            pass
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
