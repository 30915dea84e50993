"""Bits in, bits out: the algorithmic problems that Neural Turing Machines were made for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from recurra.config.section import Section
from recurra.data.batch import Batch
from recurra.data.schema import Column, SequenceSchema
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.instances import fields_of, step_field
from recurra.tasks.problems.base import LONGEST, Problem
from recurra.tasks.problems.build import ProblemName, problem_from_description

LossPer = Literal["sequence", "bit"]


class AlgorithmicConfig(Section):
    """Learn an algorithm from examples of its inputs and outputs."""

    kind: Literal["algorithmic"] = "algorithmic"
    problem: ProblemName = "copy"
    """One of the NTM paper's: say vectors again; so often; recall what followed; guess the next bit; sort."""
    loss_per: LossPer = "sequence"
    """What is minimised: the cross entropy of a whole answer, or of one bit of it. With `bit` an answer of one vector
    weighs as much as one of a hundred: short ones, which are learned first, are not drowned by the others."""
    follow_nats: float | None = Field(default=None, gt=0)
    """A step weighs exp(-nats its answer has cost before / follow_nats): what a network says after it lost its place tells nothing
    of why, and the first steps of an answer are learned first. null = all steps weigh alike."""


class AlgorithmicTask(Task):
    """Features of each step in, one logit for each bit of each step out.

    Args:
        problem: Which one, with its settings.
        loss_per, follow_nats: What is minimised, see `AlgorithmicConfig`.
    """

    kind = "algorithmic"
    streams = True
    objective = ("bits_per_sequence", "min")

    def __init__(self, problem: Problem, loss_per: LossPer = "sequence", follow_nats: float | None = None) -> None:
        self.problem = problem
        self.loss_per = loss_per
        self.follow_nats = follow_nats

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> AlgorithmicTask:
        description = metadata.get("problem")
        if not isinstance(description, Mapping) or description.get("name") != config.problem:
            held = description.get("name") if isinstance(description, Mapping) else "no problem"
            raise SchemaError(
                f"The dataset holds {held}, and task.problem is {config.problem}. Write it with the prepare.py of "
                f"jobs/algorithmic, or set task.problem to what it holds."
            )
        problem = problem_from_description(description)
        if schema.columns != problem.schema.columns:
            raise SchemaError(
                f"The dataset does not have the columns of {config.problem}: "
                f"{', '.join(map(_shape, problem.schema.columns))}. Write it with the job's prepare.py."
            )
        return cls(problem, config.loss_per, config.follow_nats)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> AlgorithmicTask:
        problem = problem_from_description(description["problem"])
        # Bundles of before these settings have none.
        return cls(problem, description.get("loss_per", "sequence"), description.get("follow_nats"))

    def describe(self) -> dict[str, Any]:
        minimised = {"loss_per": self.loss_per, "follow_nats": self.follow_nats}
        return {"kind": self.kind, "problem": self.problem.describe(), **minimised}

    def build_model(self, config: ModelConfig) -> SequenceModel:
        sizes = {"input_size": self.problem.input_size, "output_size": self.problem.output_size}
        return SequenceModel(config, ModelShape(input="features", **sizes, per_step=True))

    @property
    def lookahead(self) -> int:
        return 0

    def limits(self) -> list[str]:
        return [f"Solves {self.problem.name} for vectors of {self.problem.width} bits, and nothing else."]

    def tensors(self, batch: Batch) -> TaskTensors:
        """Targets: `bits` [B, T, K], `counted` [B, T], `present` [B], which is False for filler rows, and `optimum` [B], the
        bits that the best predictor pays, where a problem has one.

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
        optimum = {}
        if "optimum" in batch.columns:
            optimum["optimum"] = torch.from_numpy(batch.columns["optimum"].astype(np.float64) * present_B)
        return TaskTensors(
            inputs=torch.from_numpy(batch.columns["inputs"].astype(np.float32)),
            lengths=torch.from_numpy(batch.lengths.astype(np.int64)),
            reset=None,
            targets={
                "bits": torch.from_numpy(batch.columns["targets"].astype(np.float32)),
                "counted": torch.from_numpy(counted_BT),
                "present": torch.from_numpy(present_B),
                **optimum,
            },
        )

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Cross entropy of the counted bits in nats, summed over each sequence (Graves et al. report it so, in bits); with
        `loss_per` bit each sequence's mean, with `follow_nats` as far as it goes well. `sums` always has that of whole sequences as
        `nats`."""
        counted_BT, bits_BTW = tensors.targets["counted"], tensors.targets["bits"]
        nats_N = functional.binary_cross_entropy_with_logits(
            outputs[counted_BT], bits_BTW[counted_BT], reduction="none"
        ).sum(1)
        minimised_N = nats_N
        if self.follow_nats is not None:
            spent_BT = nats_N.new_zeros(counted_BT.shape).masked_scatter(counted_BT, nats_N.detach()).cumsum(1)
            minimised_N = nats_N * ((nats_N.detach() - spent_BT[counted_BT]) / self.follow_nats).exp()
        if self.loss_per == "bit":
            judged_B1 = counted_BT.sum(1, keepdim=True) * bits_BTW.shape[2]
            minimised_N = minimised_N / judged_B1.expand_as(counted_BT)[counted_BT]
        wrong_BT = ((outputs > 0) != (bits_BTW > 0.5)).sum(-1) * counted_BT
        sums = {
            "nats": nats_N.detach().sum(),
            "wrong": wrong_BT.sum(),
            "solved": ((wrong_BT.sum(1) == 0) & tensors.targets["present"]).sum(),
        }
        if "optimum" in tensors.targets:
            sums["optimum"] = tensors.targets["optimum"].sum()
        return Loss(total=minimised_N.sum(), count=tensors.targets["present"].sum(), sums=sums)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` in nats, as it is minimised, and `bits_per_sequence`; `wrong_bits` a sequence; `solved`, the share without a wrong bit;
        where the best possible predictor is known, `optimal_bits` it pays, and `excess_bits` over them."""
        sequences = max(count, 1.0)
        bits = sums["nats"] / sequences / math.log(2)
        found = {
            "loss": total / sequences,
            "bits_per_sequence": bits,
            "wrong_bits": sums["wrong"] / sequences,
            "solved": sums["solved"] / sequences,
            "sequences": count,
        }
        if "optimum" in sums:
            optimal = sums["optimum"] / sequences
            found |= {"optimal_bits": optimal, "excess_bits": bits - optimal}
        return found

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """A whole problem as the problem asks for it; or `inputs`, raw steps, for sessions that look on."""
        asked = self.problem.fields
        fields = fields_of(instance, (*asked, "inputs"), json.dumps(self.problem.example))
        raw, missing = "inputs" in fields, [name for name in asked if name not in fields]
        if raw and len(fields) > 1 or missing and not raw:
            seen = " and ".join(fields) or "nothing"
            raise RequestError(
                f"The instance has {seen}. Send {' and '.join(asked)}, such as {json.dumps(self.problem.example)}, or "
                "inputs alone.",
                code="one_of",
            )
        if not raw:
            inputs_TD, answer_from = self.problem.pose(fields)
            return Encoded(inputs=inputs_TD, context={"answer_from": answer_from})
        steps = step_field(fields, "inputs", self.problem.input_size)
        if not 1 <= len(steps) <= LONGEST:
            raise RequestError(
                f"'inputs' has {len(steps)} steps. Send 1 to {LONGEST}.",
                status=413 if len(steps) else 422,
                code="too_long" if len(steps) else "empty",
                param="inputs",
            )
        return Encoded(inputs=steps.astype(np.float32), context={"answer_from": 0})

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """The answer's bits, and the probability that each is 1."""
        answer_TW = output[encoded.context["answer_from"] :].astype(np.float64)
        probability_TW = 1 / (1 + np.exp(-np.clip(answer_TW, -60, 60)))
        return {"bits": (answer_TW > 0).astype(int).tolist(), "probabilities": probability_TW.tolist()}

    def request_schema(self) -> dict[str, Any]:
        """The problem's fields, or raw `inputs` [T, D]."""
        asked, width = self.problem.fields, self.problem.input_size
        row = {"type": "array", "items": {"type": "number"}, "minItems": width, "maxItems": width}
        raw = {"type": "array", "items": row, "minItems": 1, "maxItems": LONGEST}
        return {
            "type": "object",
            "properties": {**asked, "inputs": raw},
            "oneOf": [{"required": list(asked)}, {"required": ["inputs"]}],
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


def _shape(column: Column) -> str:
    axes = [*(["T"] if column.axis == "time" else []), *([str(column.width)] if column.width is not None else [])]
    return f"{column.name} {column.dtype} [{', '.join(axes)}]"
