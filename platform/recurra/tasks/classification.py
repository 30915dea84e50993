"""One label, or several, for a whole sequence of tokens or of feature vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from recurra.config.section import Section
from recurra.data.batch import Batch
from recurra.data.schema import SequenceSchema
from recurra.data.vocabulary import Vocabulary
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.columns import describe_column, flags_column, vocabulary_of, whole_column
from recurra.tasks.instances import fields_of, step_field, text_field, token_field, whole_number
from recurra.tasks.multi_label import multi_label_answer, multi_label_loss, multi_label_scores

_LABELS_WITH_F1 = 512
"""With more labels only accuracy is measured: macro F1 costs three sums a label."""


class ClassificationConfig(Section):
    """Tell which one of several classes a sequence belongs to, or which ones."""

    kind: Literal["classification"] = "classification"
    column: str = "tokens"
    """Time column: token ids, or float32 features of one width."""
    label: str = "label"
    """Sequence column: index into the dataset's list of labels; with multi_label one number a label, 1 where it applies."""
    multi_label: bool = False
    """Decide on each label by itself (sigmoid), so that a sequence may have several, or none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all labels (Szegedy et al. 2016, arXiv 1512.00567); training's
    and evaluation's `loss` have it, `nll` has not."""


class ClassificationTask(Task):
    """Tokens or features in, one logit a label out.

    Args:
        config: Names of columns, smoothing.
        labels: Names of the classes, in the order of their indices.
        vocabulary: Of a token column; None with features.
        features: Width of a feature column; None with tokens.
    """

    kind = "classification"
    streams = False
    objective = ("accuracy", "max")

    def __init__(
        self, config: ClassificationConfig, labels: Sequence[str], vocabulary: Vocabulary | None, features: int | None
    ) -> None:
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise SchemaError(
                f"The dataset's labels are {list(labels)}. Give at least two different names in metadata['labels']."
            )
        if config.multi_label:
            self.objective = ("micro_f1", "max")
        self.config = config
        self.labels = list(labels)
        self.vocabulary = vocabulary
        self.features = features

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> ClassificationTask:
        if not config.multi_label:
            whole_column(schema, config.label)
        if "labels" not in metadata:
            raise SchemaError(
                "The dataset's metadata has no 'labels', so the classes have no names. "
                "Write it with metadata={'labels': ['negative', 'positive']}, in the order of the indices."
            )
        if config.multi_label:
            flags_column(schema, config.label, len(metadata["labels"]))
        column = schema.column(config.column)
        if column.axis != "time" or (column.dtype == "string") or (column.dtype == "float32") == (column.width is None):
            raise SchemaError(
                f"Column '{config.column}' is {describe_column(column)}, and the task needs token ids (a whole type) or "
                "features (float32 with a width) at each time step. Name another column, or write it so."
            )
        if column.width is not None:
            return cls(config, metadata["labels"], None, column.width)
        return cls(config, metadata["labels"], vocabulary_of(metadata, config.column), None)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> ClassificationTask:
        vocabulary = description["vocabulary"]
        return cls(
            ClassificationConfig.model_validate(description["config"]),
            description["labels"],
            None if vocabulary is None else Vocabulary.from_json(vocabulary),
            description["features"],
        )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "labels": self.labels,
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_json(),
            "features": self.features,
        }

    def reading(self) -> dict[str, Any]:
        return {**self.describe(), "labels": None}

    def build_model(self, config: ModelConfig) -> SequenceModel:
        kind: Literal["tokens", "features"] = "features" if self.vocabulary is None else "tokens"
        shape = ModelShape(input=kind, input_size=self._input_size, output_size=len(self.labels), per_step=False)
        return SequenceModel(config, shape)

    @property
    def lookahead(self) -> int:
        return 0

    def limits(self) -> list[str]:
        return [f"Answers with one of {len(self.labels)} labels whatever it reads, also where none of them fits."]

    def tensors(self, batch: Batch) -> TaskTensors:
        """Targets: `label` [B], and `weight` [B], which is 0 for filler rows.

        Raises:
            ConfigError: The batch holds windows; a label belongs to a whole sequence.
        """
        if self.config.label not in batch.columns:
            raise ConfigError(
                "Classification reads whole sequences, but the data comes in windows. "
                "Remove train.truncated_bptt and set data.mode to buckets."
            )
        dtype = np.int64 if self.features is None else np.float32
        return TaskTensors(
            inputs=torch.from_numpy(batch.columns[self.config.column].astype(dtype)),
            lengths=torch.from_numpy(batch.lengths),
            reset=None,
            targets={
                "label": torch.from_numpy(batch.columns[self.config.label].astype(np.int64)),
                "weight": torch.from_numpy(batch.weight),
            },
        )

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Cross entropy in nats, over sequences by weight; sums for accuracy and macro F1."""
        label_B, weight_B = tensors.targets["label"], tensors.targets["weight"]
        if self.config.multi_label:
            return multi_label_loss(outputs, label_B, weight_B, self.config.label_smoothing)
        logs_BK = functional.log_softmax(outputs, dim=-1)
        nll_B = -logs_BK.gather(1, label_B[:, None])[:, 0]
        smoothing = self.config.label_smoothing
        total = (weight_B * ((1 - smoothing) * nll_B - smoothing * logs_BK.mean(1))).sum()
        guess_B = outputs.argmax(1)
        sums = {
            "nll": (weight_B * nll_B).sum().detach(),
            "right": (weight_B * (guess_B == label_B)).sum(),
        }
        if len(self.labels) <= _LABELS_WITH_F1:
            for index, (hits, guesses, truths) in enumerate(self._tally(guess_B, label_B, weight_B)):
                sums |= {f"hits.{index}": hits, f"guesses.{index}": guesses, f"truths.{index}": truths}
        return Loss(total=total, count=weight_B.sum(), sums=sums)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`accuracy` (with multi_label of whole sets), `macro_f1` (over the labels that occur), `nll` and `loss` in nats,
        `sequences`; with multi_label `micro_f1` and the F1 of each label, too."""
        size = max(count, 1.0)
        metrics = {
            "loss": total / size,
            "nll": sums["nll"] / size,
            "accuracy": sums["right"] / size,
            "sequences": count,
        }
        if self.config.multi_label:
            return metrics | multi_label_scores(self.labels, sums)
        if "hits.0" in sums:
            scores = []
            for index in range(len(self.labels)):
                hits, guesses, truths = (sums[f"{name}.{index}"] for name in ("hits", "guesses", "truths"))
                if guesses + truths > 0:
                    scores.append(2 * hits / (guesses + truths))
            metrics["macro_f1"] = sum(scores) / len(scores) if scores else 0.0
        return metrics

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """`text` or `tokens`, or `values` with features; a session may send a sequence in parts."""
        if self.features is not None:
            fields = fields_of(instance, ("values",), self._example)
            self._check_one_of(fields, ("values",))
            values = step_field(fields, "values", self.features).astype(np.float32)
            return Encoded(inputs=self._filled(values, "values", instance))
        assert self.vocabulary is not None
        fields = fields_of(instance, ("text", "tokens"), self._example)
        name = self._check_one_of(fields, ("text", "tokens"))
        if name == "tokens":
            ids = token_field(fields, name, self.vocabulary.size)
        else:
            ids = self.vocabulary.encode(text_field(fields, name)).astype(np.int64)
        return Encoded(inputs=self._filled(ids, name, fields[name]))

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """The likeliest label, and the probability of each of the `top` likeliest (all, by default); see
        `multi_label_answer` for several."""
        if self.config.multi_label:
            return multi_label_answer(output, self.labels, options)
        top = whole_number(options, "top", 1, len(self.labels), len(self.labels))
        logits: list[float] = output.tolist()
        highest = max(logits)
        weights = [math.exp(logit - highest) for logit in logits]  # labels are few: numpy takes five times as long
        total = sum(weights)
        order = sorted(range(len(weights)), key=weights.__getitem__, reverse=True)[:top]
        return {
            "label": self.labels[order[0]],
            "score": weights[order[0]] / total,
            "scores": {self.labels[index]: weights[index] / total for index in order},
        }

    def request_schema(self) -> dict[str, Any]:
        """`text` or `tokens`; `values` [T, D] with features."""
        if self.features is not None:
            step = {"type": "array", "items": {"type": "number"}, "minItems": self.features, "maxItems": self.features}
            values = {"type": "array", "items": step, "minItems": 1, "description": "One list of features a step."}
            return {
                "type": "object",
                "properties": {"values": values},
                "required": ["values"],
                "additionalProperties": False,
            }
        token = {"type": "integer", "minimum": 0, "maximum": self._input_size - 1}
        return {
            "type": "object",
            "properties": {
                "text": {"type": "string", "minLength": 1},
                "tokens": {"type": "array", "items": token, "minItems": 1},
            },
            "oneOf": [{"required": ["text"]}, {"required": ["tokens"]}],
            "additionalProperties": False,
            "examples": [{"text": "a warm and funny film"}],
        }

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """The first rows' truth beside the guess and its probability."""
        many = self.config.multi_label
        scores_BK = outputs.float().sigmoid() if many else functional.softmax(outputs.float(), dim=-1)
        rows = []
        for row in range(min(5, outputs.shape[0])):
            if tensors.targets["weight"][row] == 0:
                continue
            score, guess = scores_BK[row].max(0)
            label = tensors.targets["label"][row]
            sample: dict[str, Any] = {
                "label": self._names(label) if many else self.labels[int(label)],
                "guess": self._names(scores_BK[row] > 0.5) if many else self.labels[int(guess)],
                "score": float(score),
            }
            if self.vocabulary is not None:
                ids = tensors.inputs[row, : int(tensors.lengths[row])].tolist()
                sample["text"] = self.vocabulary.decode(ids)
            rows.append(sample)
        return rows

    def _names(self, flags_K: Tensor) -> str:
        return ", ".join(name for name, flag in zip(self.labels, flags_K.tolist(), strict=True) if flag) or "none"

    @property
    def _input_size(self) -> int:
        if self.vocabulary is not None:
            return self.vocabulary.size
        assert self.features is not None  # one of the two is given
        return self.features

    @property
    def _example(self) -> str:
        if self.features is None:
            return '{"text": "a warm and funny film"}'
        return f'{{"values": [[{", ".join(["0.5"] * min(self.features, 3))}{", ..." if self.features > 3 else ""}]]}}'

    def _tally(self, guess_B: Tensor, label_B: Tensor, weight_B: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each label: weight of right guesses, of all guesses, and of all sequences that have it."""
        size = len(self.labels)
        hits_K = torch.zeros(size, device=guess_B.device).index_add_(0, label_B, weight_B * (guess_B == label_B))
        guesses_K = torch.zeros(size, device=guess_B.device).index_add_(0, guess_B, weight_B)
        truths_K = torch.zeros(size, device=guess_B.device).index_add_(0, label_B, weight_B)
        return list(zip(hits_K.unbind(), guesses_K.unbind(), truths_K.unbind(), strict=True))

    def _check_one_of(self, fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
        given = [name for name in names if name in fields]
        if len(given) != 1:
            seen = " and ".join(given) or f"no {' or '.join(names)}"
            raise RequestError(f"The instance has {seen}. Send one of them, such as {self._example}.", code="one_of")
        return given[0]

    def _filled(self, inputs: NDArray[Any], name: str, seen: Any) -> NDArray[Any]:
        if not len(inputs):
            raise RequestError(
                f"'{name}' is {str(seen)[:50]!r}, which has no step. Send {self._example}.", code="empty", param=name
            )
        return inputs
