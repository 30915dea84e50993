"""Bits in, bits out: the algorithmic problems that Neural Turing Machines were made for."""

from __future__ import annotations

import math
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
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.tasks.algorithms import copy_inputs, copy_schema
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.instances import fields_of, step_field

_LONGEST = 4096


class AlgorithmicConfig(Section):
    """Learn an algorithm from examples of its inputs and outputs."""

    kind: Literal["algorithmic"] = "algorithmic"
    problem: Literal["copy"] = "copy"
    """Copy: read vectors of bits, then say them again."""


class AlgorithmicTask(Task):
    """Features of each step in, one logit for each bit of each step out.

    Args:
        config: Which problem.
        width: Bits of a vector.
    """

    kind = "algorithmic"
    streams = True
    objective = ("bits_per_sequence", "min")

    def __init__(self, config: AlgorithmicConfig, width: int) -> None:
        self.config = config
        self.width = width

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> AlgorithmicTask:
        width = schema.column("targets").width
        if width is None or schema.columns != copy_schema(width).columns:
            raise SchemaError(
                "The dataset does not have the columns of the copy problem: inputs float32 [T, W + 1], targets uint8 "
                "[T, W], counted uint8 [T]. Write it with the job's prepare.py."
            )
        return cls(config, width)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> AlgorithmicTask:
        return cls(AlgorithmicConfig.model_validate(description["config"]), description["width"])

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "config": self.config.model_dump(mode="json"), "width": self.width}

    def build_model(self, config: ModelConfig) -> SequenceModel:
        return SequenceModel(
            config, ModelShape(input="features", input_size=self.width + 1, output_size=self.width, per_step=True)
        )

    @property
    def lookahead(self) -> int:
        return 0

    def tensors(self, batch: Batch, device: str) -> TaskTensors:
        """Targets: `bits` [B, T, W], `counted` [B, T], and `present` [B], which is False for filler rows.

        Raises:
            ConfigError: The batch holds windows; an answer needs the whole of its question.
        """
        if batch.lanes is not None or bool(batch.reset[:, 1:].any()):
            raise ConfigError(
                "Algorithmic problems are whole sequences, but the data comes in windows. "
                "Remove train.truncated_bptt and set data.mode to buckets."
            )
        present_B = (batch.lengths > 0) & (batch.weight > 0)
        counted_BT = batch.columns["counted"].astype(np.bool_) & present_B[:, None]
        return TaskTensors(
            inputs=torch.from_numpy(batch.columns["inputs"].astype(np.float32)).to(device),
            lengths=torch.from_numpy(batch.lengths.astype(np.int64)),
            reset=None,
            targets={
                "bits": torch.from_numpy(batch.columns["targets"].astype(np.float32)).to(device),
                "counted": torch.from_numpy(counted_BT).to(device),
                "present": torch.from_numpy(present_B).to(device),
            },
        )

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Cross entropy of the counted bits in nats, for each sequence (Graves et al. report it so, in bits)."""
        counted_BT, bits_BTW = tensors.targets["counted"], tensors.targets["bits"]
        total = functional.binary_cross_entropy_with_logits(outputs[counted_BT], bits_BTW[counted_BT], reduction="sum")
        wrong_BT = ((outputs > 0) != (bits_BTW > 0.5)).sum(-1) * counted_BT
        sums = {
            "wrong": wrong_BT.sum(),
            "solved": ((wrong_BT.sum(1) == 0) & tensors.targets["present"]).sum(),
        }
        return Loss(total=total, count=tensors.targets["present"].sum(), sums=sums)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` in nats and `bits_per_sequence`; `wrong_bits` a sequence; `solved`, the share without a wrong bit."""
        sequences = max(count, 1.0)
        return {
            "loss": total / sequences,
            "bits_per_sequence": total / sequences / math.log(2),
            "wrong_bits": sums["wrong"] / sequences,
            "solved": sums["solved"] / sequences,
            "sequences": count,
        }

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """`bits` poses a whole problem; `inputs` gives raw steps, for sessions that look on."""
        row = ", ".join(["0"] * self.width)
        fields = fields_of(instance, ("bits", "inputs"), f'{{"bits": [[{row}]]}}')
        if len(fields) != 1:
            seen = " and ".join(fields) or "neither bits nor inputs"
            raise RequestError(
                f'The instance has {seen}. Send one of them, such as {{"bits": [[{row}]]}}.', code="one_of"
            )
        name = next(iter(fields))
        steps = step_field(fields, name, self.width if name == "bits" else self.width + 1)
        if not 1 <= len(steps) <= _LONGEST:
            raise RequestError(
                f"'{name}' has {len(steps)} steps. Send 1 to {_LONGEST}.",
                status=413 if len(steps) else 422,
                code="too_long" if len(steps) else "empty",
                param=name,
            )
        if name == "inputs":
            return Encoded(inputs=steps.astype(np.float32), context={"answer_from": 0})
        if not np.isin(steps, (0, 1)).all():
            raise RequestError(
                f"'bits' holds {steps[~np.isin(steps, (0, 1))][0]:g}. Send 0 and 1 alone.", code="not_a_bit", param=name
            )
        return Encoded(inputs=copy_inputs(steps.astype(np.int64)), context={"answer_from": len(steps) + 1})

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """The answer's bits, and the probability that each is 1."""
        answer_TW = output[encoded.context["answer_from"] :].astype(np.float64)
        probability_TW = 1 / (1 + np.exp(-np.clip(answer_TW, -60, 60)))
        return {"bits": (answer_TW > 0).astype(int).tolist(), "probabilities": probability_TW.tolist()}

    def request_schema(self) -> dict[str, Any]:
        """`bits` [N, W], or raw `inputs` [T, W + 1]."""

        def steps(width: int, item: dict[str, Any]) -> dict[str, Any]:
            row = {"type": "array", "items": item, "minItems": width, "maxItems": width}
            return {"type": "array", "items": row, "minItems": 1, "maxItems": _LONGEST}

        return {
            "type": "object",
            "properties": {
                "bits": steps(self.width, {"type": "integer", "minimum": 0, "maximum": 1}),
                "inputs": steps(self.width + 1, {"type": "number"}),
            },
            "oneOf": [{"required": ["bits"]}, {"required": ["inputs"]}],
            "additionalProperties": False,
        }

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """The first rows' bits beside the answers."""
        rows = []
        for row in range(min(2, outputs.shape[0])):
            counted_T = tensors.targets["counted"][row]
            if counted_T.any():
                rows.append(
                    {
                        "bits": tensors.targets["bits"][row][counted_T].int().tolist(),
                        "answer": (outputs[row][counted_T] > 0).int().tolist(),
                    }
                )
        return rows
