"""One text in, another one out: translation, summaries, normalisation. Encoder, decoder with attention, beam search."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
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
from recurra.errors import ConfigError, RequestError
from recurra.models.beam import Search
from recurra.models.config import ModelConfig
from recurra.models.encoder_decoder import EncoderDecoder, Languages, unpack
from recurra.models.sequence import Model
from recurra.models.state import State
from recurra.tasks.base import Encoded, Loss, Measured, Task, TaskTensors
from recurra.tasks.bleu import Bleu
from recurra.tasks.columns import target_vocabulary_of, text_column, token_column, vocabulary_of
from recurra.tasks.instances import fields_of, text_field, token_field, whole_number
from recurra.tasks.references import bytes_to_texts, encode_all, pad_ids, texts_to_bytes

_EXAMPLE = '{"text": "two men are talking"}'


class TranslationConfig(Section):
    """Turn a text into another one, token by token, looking back at the source."""

    kind: Literal["translation"] = "translation"
    column: str = "tokens"
    """Time column: token ids of the source."""
    target: str = "target"
    """Sequence column: the right answer, as text; `metadata['target_vocabulary']` cuts it."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of each token's target that is spread over all tokens (Szegedy et al. 2016, arXiv 1512.00567)."""
    beams: int = Field(default=4, ge=1, le=64)
    """Hypotheses that the search keeps; 1 = greedy."""
    length_penalty: float = Field(default=1.0, ge=0, le=4)
    """Exponent by which longer answers are favoured (Wu et al. 2016); 0 = not at all."""
    longest: int = Field(default=100, ge=1, le=4096)
    """Tokens of an answer at most; longer ones in the data are cut."""
    bleu_tokenize: Literal["13a", "intl", "char", "none"] = "13a"
    """How sacrebleu cuts texts before it compares them; none = they are cut already."""


class TranslationTask(Task):
    """Token ids in; the logits of each target token while learning, the hypotheses of a beam search otherwise."""

    kind = "translation"
    streams = False
    objective = ("bleu", "max")

    def __init__(self, config: TranslationConfig, vocabulary: Vocabulary, target: Vocabulary) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.target = target
        self.search = Search(config.beams, config.longest, config.length_penalty, target.bos)

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> TranslationTask:
        token_column(schema, config.column)
        text_column(schema, config.target)
        task = cls(config, vocabulary_of(metadata, config.column), target_vocabulary_of(metadata, config.target))
        assert task._bleu  # a missing library is noticed before anything is trained
        return task

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> TranslationTask:
        return cls(
            TranslationConfig.model_validate(description["config"]),
            Vocabulary.from_json(description["vocabulary"]),
            Vocabulary.from_json(description["target_vocabulary"]),
        )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "vocabulary": self.vocabulary.to_json(),
            "target_vocabulary": self.target.to_json(),
        }

    def build_model(self, config: ModelConfig) -> EncoderDecoder:
        return EncoderDecoder(config, Languages(self.vocabulary.size, self.target.size), self.search)

    @property
    def lookahead(self) -> int:
        return 0

    def tensors(self, batch: Batch) -> TaskTensors:
        """Targets: `given` [B, U] (the end token, then the answer), `next` [B, U] (the answer, then the end token),
        `counted` [B, U], and `reference` [B, S], the answer's text in bytes.

        Raises:
            ConfigError: The batch holds windows; an answer belongs to a whole text.
        """
        if self.config.target not in batch.columns:
            raise ConfigError(
                "Translation reads whole texts, but the data comes in windows. "
                "Remove train.truncated_bptt and set data.mode to buckets."
            )
        texts = [str(text) for text in batch.columns[self.config.target]]
        answers = [ids[: self.config.longest] for ids in encode_all(self.target, texts)]
        end = [self.target.bos]
        given_BU, lengths_B = pad_ids([end + ids for ids in answers])
        next_BU, _ = pad_ids([ids + end for ids in answers])
        real_B = torch.from_numpy(batch.weight > 0)
        counted_BU = (torch.arange(given_BU.shape[1]) < lengths_B[:, None]) & real_B[:, None]
        targets = {"given": given_BU, "next": next_BU, "counted": counted_BU, "reference": texts_to_bytes(texts)}
        return TaskTensors(
            inputs=torch.from_numpy(batch.columns[self.config.column].astype(np.int64)),
            lengths=torch.from_numpy(batch.lengths),
            reset=None,
            targets=targets,
        )

    def forward(self, model: Model, tensors: TaskTensors, state: State | None) -> tuple[Tensor, State]:
        """Logits [B, U, V] by teacher forcing."""
        assert isinstance(model, EncoderDecoder)
        return model.teach(tensors.inputs, tensors.lengths, tensors.targets["given"])

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Cross entropy in nats a target token, with label smoothing; `nll` is without."""
        counted_BU = tensors.targets["counted"]
        logs_NV = functional.log_softmax(outputs[counted_BU], dim=-1)
        next_N = tensors.targets["next"][counted_BU]
        nll_N = -logs_NV.gather(1, next_N[:, None])[:, 0]
        smoothing = self.config.label_smoothing
        total = ((1 - smoothing) * nll_N - smoothing * logs_NV.mean(1)).sum()
        sums = {"nll": nll_N.detach().sum()}
        if not outputs.requires_grad:
            sums["right"] = (logs_NV.argmax(1) == next_N).sum()
        return Loss(total=total, count=counted_BU.sum(), sums=sums)

    def measure(self, model: Model, tensors: TaskTensors, *, want_samples: bool) -> Measured:
        """What beam search finds, counted for BLEU."""
        real = tensors.targets["counted"].any(1).tolist()
        outputs, _ = model(tensors.inputs, None, tensors.lengths)
        references = bytes_to_texts(tensors.targets["reference"])
        pairs = [
            (self._text(found[0][1]), reference)
            for found, reference, own in zip(unpack(outputs, self.search), references, real, strict=True)
            if own
        ]
        counts = self._bleu.counts([answer for answer, _ in pairs], [reference for _, reference in pairs])
        samples = []
        if want_samples:
            sources = [
                self.vocabulary.decode(row[:length].tolist())
                for row, length in zip(tensors.inputs, tensors.lengths.tolist(), strict=True)
            ]
            shown = zip([s for s, own in zip(sources, real, strict=True) if own], pairs, strict=True)
            samples = [{"text": text, "reference": right, "answer": answer} for text, (answer, right) in shown][:8]
        return Measured({f"bleu.{name}": torch.tensor(value) for name, value in counts.items()}, samples)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` (smoothed), `perplexity` and `token_accuracy` of the right answer; `bleu` of the searched ones, in percent,
        and `length_ratio`, theirs over the references'."""
        metrics = {
            "loss": total / max(count, 1.0),
            "perplexity": float(np.exp(min(sums["nll"] / max(count, 1.0), 700.0))),
            "token_accuracy": sums.get("right", 0.0) / max(count, 1.0),
        }
        counts = {name.removeprefix("bleu."): value for name, value in sums.items() if name.startswith("bleu.")}
        if counts:
            metrics["bleu"] = self._bleu.score(counts)
            metrics["length_ratio"] = counts["length"] / max(counts["reference_length"], 1.0)
        return metrics

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """`text` or `tokens` of the source."""
        fields = fields_of(instance, ("text", "tokens"), _EXAMPLE)
        given = [name for name in ("text", "tokens") if name in fields]
        if len(given) != 1:
            seen = " and ".join(given) or "neither text nor tokens"
            raise RequestError(f"The instance has {seen}. Send one of them, such as {_EXAMPLE}.", code="one_of")
        if given == ["tokens"]:
            ids = token_field(fields, "tokens", self.vocabulary.size)
        else:
            ids = self.vocabulary.encode(text_field(fields, "text")).astype(np.int64)
        if not ids.size:
            raise RequestError(f"'{given[0]}' is empty. Send {_EXAMPLE}.", code="empty", param=given[0])
        return Encoded(inputs=ids)

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """The best answer and its score (log probability over length penalty). Option `alternatives`: so many others."""
        wanted = whole_number(options, "alternatives", 0, self.config.beams - 1, 0)
        found = unpack(torch.from_numpy(output)[None], self.search)[0]
        answers = [{"text": self._text(ids), "tokens": ids, "score": score} for score, ids in found[: wanted + 1]]
        return {**answers[0], "alternatives": answers[1:]}

    def request_schema(self) -> dict[str, Any]:
        """`text` or `tokens`."""
        token = {"type": "integer", "minimum": 0, "maximum": self.vocabulary.size - 1}
        return {
            "type": "object",
            "properties": {
                "text": {"type": "string", "minLength": 1, "description": "What is to be translated."},
                "tokens": {"type": "array", "items": token, "minItems": 1},
            },
            "oneOf": [{"required": ["text"]}, {"required": ["tokens"]}],
            "additionalProperties": False,
            "examples": [{"text": "two men are talking"}],
        }

    @cached_property
    def _bleu(self) -> Bleu:
        return Bleu(self.config.bleu_tokenize)

    def _text(self, ids: list[int]) -> str:
        return self.target.decode(ids).strip()
