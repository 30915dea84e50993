"""Next-token prediction over bytes, characters, subwords or words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recurra.config.section import Section
from recurra.data.batch import Batch
from recurra.data.schema import SequenceSchema
from recurra.data.vocabulary import TextStream, Vocabulary
from recurra.errors import RequestError
from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.columns import token_column, vocabulary_of
from recurra.tasks.instances import fields_of, text_field, token_field, whole_number

_EXAMPLE = '{"prompt": "def "}'
_MOST_LIKELY = 5
_MOST_ALTERNATIVES = 100


class LanguageModelConfig(Section):
    """Predict each token from those before it."""

    kind: Literal["language_model"] = "language_model"
    column: str = "tokens"
    """Time column of token ids. Documents start with the vocabulary's bos token."""


class LanguageModelTask(Task):
    """Token ids in, logits of the next token out.

    The first token of a sequence (bos) is never predicted, nor is a token across the start of a sequence, so with a
    byte vocabulary `bits_per_token` is bits per byte of text.
    """

    kind = "language_model"
    streams = True
    objective = ("bits_per_token", "min")

    def __init__(self, config: LanguageModelConfig, vocabulary: Vocabulary) -> None:
        self.config = config
        self.vocabulary = vocabulary

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> LanguageModelTask:
        token_column(schema, config.column)
        return cls(config, vocabulary_of(metadata, config.column))

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> LanguageModelTask:
        return cls(
            LanguageModelConfig.model_validate(description["config"]), Vocabulary.from_json(description["vocabulary"])
        )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "vocabulary": self.vocabulary.to_json(),
        }

    def build_model(self, config: ModelConfig) -> SequenceModel:
        size = self.vocabulary.size
        return SequenceModel(config, ModelShape(input="tokens", input_size=size, output_size=size, per_step=True))

    @property
    def lookahead(self) -> int:
        return 1

    def limits(self) -> list[str]:
        return [f"Knows {self.vocabulary.size:,} tokens, and no facts: what it writes is likely text, not true text."]

    def tensors(self, batch: Batch) -> TaskTensors:
        """Inputs are all steps of a row but its last, targets are all but its first: `next` [B, T], and `counted`."""
        tokens_BS = batch.columns[self.config.column].astype(np.int64)
        steps = np.arange(1, tokens_BS.shape[1])
        counted_BT = (steps < batch.lengths[:, None]) & ~batch.reset[:, 1:] & (batch.weight > 0)[:, None]
        reset_BT = batch.reset[:, :-1]
        whole_rows = batch.lanes is None and not reset_BT[:, 1:].any()
        return TaskTensors(
            inputs=torch.from_numpy(tokens_BS[:, :-1]),
            lengths=torch.from_numpy(np.maximum(batch.lengths - 1, 0)),
            reset=None if whole_rows else torch.from_numpy(reset_BT),
            targets={
                "next": torch.from_numpy(tokens_BS[:, 1:]),
                "counted": torch.from_numpy(counted_BT),
            },
        )

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Cross entropy in nats, over the counted tokens."""
        ignored = -100
        target_BT = tensors.targets["next"].masked_fill(~tensors.targets["counted"], ignored)
        total = functional.cross_entropy(
            outputs.flatten(0, 1), target_BT.flatten(), ignore_index=ignored, reduction="sum"
        )
        return Loss(total=total, count=tensors.targets["counted"].sum())

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` in nats a token, `bits_per_token`, `perplexity`, and the number of `tokens`."""
        nats = total / max(count, 1.0)
        return {
            "loss": nats,
            "bits_per_token": nats / math.log(2),
            "perplexity": math.exp(min(nats, 700.0)),
            "tokens": count,
        }

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """A new sequence starts with bos; what a session sends next does not, and may be given as `text`, too."""
        fields = fields_of(instance, ("prompt", "text", "tokens"), _EXAMPLE)
        given = [name for name in ("prompt", "text", "tokens") if name in fields]
        if len(given) != 1:
            seen = " and ".join(given) or "none of prompt, text, tokens"
            raise RequestError(f"The instance has {seen}. Send one of them, such as {_EXAMPLE}.", code="one_of")
        if given == ["tokens"]:
            ids = token_field(fields, "tokens", self.vocabulary.size)
        else:
            ids = self.vocabulary.encode(text_field(fields, given[0])).astype(np.int64)
        if context is None and (not ids.size or ids[0] != self.vocabulary.bos):
            ids = np.concatenate([np.array([self.vocabulary.bos], np.int64), ids])
        if not ids.size:
            raise RequestError(f"'{given[0]}' is empty. Send at least one token.", code="empty", param=given[0])
        return Encoded(inputs=ids)

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """The likeliest next tokens (option `top`), and how many bits the model needed for the inputs."""
        top = whole_number(options, "top", 1, min(_MOST_ALTERNATIVES, self.vocabulary.size), _MOST_LIKELY)
        logs_TK = _log_softmax(output.astype(np.float64))
        ids = encoded.inputs.astype(np.int64)
        spent = -logs_TK[np.arange(len(ids) - 1), ids[1:]].sum() / math.log(2)
        likeliest = np.argsort(-logs_TK[-1], kind="stable")[:top]
        return {
            "next": [
                {"token": int(token), "text": self.text_of([int(token)]), "logprob": float(logs_TK[-1, token])}
                for token in likeliest
            ],
            "tokens": len(ids),
            "bits": float(spent),
        }

    def request_schema(self) -> dict[str, Any]:
        """One of `prompt`, `text` (the same) and `tokens`."""
        text = {"type": "string", "description": "Text to go on from; the start of a document is put before it."}
        token = {"type": "integer", "minimum": 0, "maximum": self.vocabulary.size - 1}
        return {
            "type": "object",
            "properties": {"prompt": text, "text": text, "tokens": {"type": "array", "items": token}},
            "oneOf": [{"required": ["prompt"]}, {"required": ["text"]}, {"required": ["tokens"]}],
            "additionalProperties": False,
            "examples": [{"prompt": "def "}],
        }

    def text_of(self, tokens: Iterable[int]) -> str:
        """Text of tokens; markers give nothing, broken UTF-8 gives U+FFFD."""
        return self.vocabulary.decode(tokens)

    def text_stream(self) -> TextStream:
        """Text of tokens that come one by one; never cuts a character in two."""
        return self.vocabulary.stream()

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """The first rows' text beside the model's guess of each next token, and their bits per token."""
        rows = []
        guesses_BT = outputs.argmax(-1)
        for row in range(min(3, outputs.shape[0])):
            counted = tensors.targets["counted"][row]
            if not counted.any():
                continue
            target = tensors.targets["next"][row][counted]
            nats = functional.cross_entropy(outputs[row][counted].float(), target)
            rows.append(
                {
                    "text": self.text_of(target.tolist()),
                    "guesses": self.text_of(guesses_BT[row][counted].tolist()),
                    "bits_per_token": float(nats) / math.log(2),
                }
            )
        return rows


def _log_softmax(logits_TK: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits_TK - logits_TK.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
