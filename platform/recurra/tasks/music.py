"""Polyphonic music: which notes sound at the next step, each by itself, given all steps before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recurra.config.section import Section
from recurra.data.batch import Batch
from recurra.data.schema import SequenceSchema
from recurra.errors import RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.columns import describe_column
from recurra.tasks.instances import fields_of, real_number, whole_number

_EXAMPLE = '{"notes": [[60, 64, 67], [60, 65, 69]]}'
_SHOWN_STEPS = 64


class MusicConfig(Section):
    """Predict the notes of the next step from the steps so far (Boulanger-Lewandowski et al. 2012, arXiv 1206.6392)."""

    kind: Literal["music"] = "music"
    column: str = "notes"
    """Time column, uint8 with a width: 1 where a note sounds. metadata['lowest_note'] is the MIDI number of the first."""


class MusicTask(Task):
    """Notes of a step in, one logit for each note of the next step out.

    Args:
        config: Name of the column.
        width: Notes that there are (W).
        lowest: MIDI number of the first of them; 60 is middle C.
    """

    kind = "music"
    streams = True
    objective = ("nll", "min")

    def __init__(self, config: MusicConfig, width: int, lowest: int) -> None:
        self.config = config
        self.width = width
        self.lowest = lowest

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> MusicTask:
        column = schema.column(config.column)
        if column.axis != "time" or column.width is None or column.dtype != "uint8":
            raise SchemaError(
                f"Column '{config.column}' is {describe_column(column)}, and music needs uint8 with a width at each time "
                "step: 1 for each note that sounds, else 0. Write it so, or name another column."
            )
        if not isinstance(metadata.get("lowest_note"), int):
            raise SchemaError(
                f"The dataset's metadata has lowest_note {metadata.get('lowest_note')!r}. Write it with "
                "metadata={'lowest_note': 21}, the MIDI number of the first note of a step."
            )
        return cls(config, column.width, metadata["lowest_note"])

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> MusicTask:
        config = MusicConfig.model_validate(description["config"])
        return cls(config, description["width"], description["lowest"])

    def describe(self) -> dict[str, Any]:
        config = self.config.model_dump(mode="json")
        return {"kind": self.kind, "config": config, "width": self.width, "lowest": self.lowest}

    def build_model(self, config: ModelConfig) -> SequenceModel:
        shape = ModelShape(input="features", input_size=self.width, output_size=self.width, per_step=True)
        return SequenceModel(config, shape)

    @property
    def lookahead(self) -> int:
        return 1

    def limits(self) -> list[str]:
        return [
            f"Knows notes {self.lowest} to {self.lowest + self.width - 1} (MIDI), each on or off at a step.",
            "Draws the notes of a step independently of each other, so chords of its own may clash.",
        ]

    def tensors(self, batch: Batch) -> TaskTensors:
        """Inputs are all steps of a row but its last, targets all but its first: `next` [B, T, W], `counted` [B, T]."""
        notes_BSW = batch.columns[self.config.column].astype(np.float32)
        steps = np.arange(1, notes_BSW.shape[1])
        counted_BT = (steps < batch.lengths[:, None]) & ~batch.reset[:, 1:] & (batch.weight > 0)[:, None]
        reset_BT = batch.reset[:, :-1]
        whole_rows = batch.lanes is None and not reset_BT[:, 1:].any()
        return TaskTensors(
            inputs=torch.from_numpy(notes_BSW[:, :-1]),
            lengths=torch.from_numpy(np.maximum(batch.lengths - 1, 0)),
            reset=None if whole_rows else torch.from_numpy(reset_BT),
            targets={
                "next": torch.from_numpy(notes_BSW[:, 1:]),
                "counted": torch.from_numpy(counted_BT),
            },
        )

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Negative log likelihood in nats of all notes of a step, summed over them; items are steps (Bai et al. 2018)."""
        counted_BT = tensors.targets["counted"]
        logits_NW, next_NW = outputs[counted_BT], tensors.targets["next"][counted_BT]
        total = functional.binary_cross_entropy_with_logits(logits_NW, next_NW, reduction="sum")
        said_NW, true_NW = logits_NW > 0, next_NW > 0.5
        sums = {"right": (said_NW & true_NW).sum(), "either": (said_NW | true_NW).sum()}
        return Loss(total=total, count=counted_BT.sum(), sums=sums)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` = `nll` in nats a step; `accuracy` = notes right / (right + missed + wrong) (Bay et al. 2009); `steps`."""
        nll = total / max(count, 1.0)
        return {"loss": nll, "nll": nll, "accuracy": sums["right"] / max(sums["either"], 1.0), "steps": count}

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """`notes`: for each step the MIDI numbers that sound; an empty list is a rest."""
        fields = fields_of(instance, ("notes",), _EXAMPLE)
        steps = fields.get("notes")
        if not isinstance(steps, list) or not steps or not all(isinstance(step, list) for step in steps):
            raise RequestError(
                f"'notes' is {str(steps)[:50]}. Send one list of MIDI numbers for each step, such as {_EXAMPLE}.",
                code="not_steps",
                param="notes",
            )
        inputs_TW = np.zeros((len(steps), self.width), np.float32)
        for index, step in enumerate(steps):
            for note in step:
                inputs_TW[index, self._place(note, index)] = 1
        return Encoded(inputs=inputs_TW)

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """What may sound next: the probability of each note that has one of `least` or more, and `sample`, a draw.

        Options: `temperature` (0 = every note that is likelier than not), `seed` of the draw, `least`. A session that is
        sent its own samples continues a piece.
        """
        temperature = real_number(options, "temperature", 0.0, 10.0, 1.0)
        least = real_number(options, "least", 0.0, 1.0, 0.05)
        seed = options.get("seed") if options.get("seed") is None else whole_number(options, "seed", 0, 2**63 - 1, 0)
        logits_W = output[-1].astype(np.float64)
        probability_W = _sigmoid(logits_W)
        if temperature == 0:
            drawn = np.flatnonzero(logits_W > 0)
        else:
            drawn = np.flatnonzero(np.random.default_rng(seed).random(self.width) < _sigmoid(logits_W / temperature))
        likely = [place for place in np.argsort(-probability_W, kind="stable") if probability_W[place] >= least]
        return {
            "sample": (drawn + self.lowest).tolist(),
            "probabilities": {str(self.lowest + int(place)): float(probability_W[place]) for place in likely},
        }

    def request_schema(self) -> dict[str, Any]:
        """`notes`, one list of MIDI numbers a step."""
        note = {"type": "integer", "minimum": self.lowest, "maximum": self.lowest + self.width - 1}
        notes = {"type": "array", "items": {"type": "array", "items": note}, "minItems": 1}
        return {
            "type": "object",
            "properties": {"notes": {**notes, "description": "MIDI numbers that sound at each step; [] is a rest."}},
            "required": ["notes"],
            "additionalProperties": False,
        }

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """Piano rolls of the first rows, high notes on top, beside the notes that were likelier than not."""
        rows = []
        for row in range(min(2, outputs.shape[0])):
            counted_T = tensors.targets["counted"][row]
            if not counted_T.any():
                continue
            true_TW = tensors.targets["next"][row][counted_T][:_SHOWN_STEPS].flip(1)
            said_TW = (outputs[row][counted_T][:_SHOWN_STEPS] > 0).flip(1)
            used = ((true_TW > 0).any(0) | said_TW.any(0)).nonzero().flatten()
            low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
            rows.append({"bits": true_TW[:, low:high].int().tolist(), "answer": said_TW[:, low:high].int().tolist()})
        return rows

    def _place(self, note: Any, index: int) -> int:
        """Column of a note."""
        highest = self.lowest + self.width - 1
        if not isinstance(note, int) or isinstance(note, bool) or not self.lowest <= note <= highest:
            raise RequestError(
                f"'notes' holds {note!r} at step {index}. Send MIDI numbers from {self.lowest} to {highest} (60 is middle C).",
                code="note_out_of_range",
                param="notes",
            )
        return note - self.lowest


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -700, 700))))
