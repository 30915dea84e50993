"""Frames in, text out, without knowing which frame says what: speech recognition by CTC (Graves et al. 2006)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from recurra.config.section import Section
from recurra.data.audio import FrontEnd
from recurra.data.batch import Batch
from recurra.data.schema import SequenceSchema
from recurra.data.vocabulary import Vocabulary
from recurra.errors import ConfigError, DataError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.models.sequence import Model, ModelShape, SequenceModel
from recurra.models.state import State
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.columns import describe_column, target_vocabulary_of, text_column
from recurra.tasks.ctc import BLANK, Mixing, count_ngrams, greedy, prefix_search
from recurra.tasks.edits import error_counts
from recurra.tasks.frames import mask_spans, stack_frames, standardise
from recurra.tasks.instances import audio_field, fields_of, number_field, step_field, whole_number
from recurra.tasks.references import bytes_to_texts, encode_all, pad_ids, texts_to_bytes

LM_TEXTS = "language_model_texts"
"""Key of a dataset's metadata: texts that the language model is counted on, such as the training transcripts."""


class LanguageModelMixConfig(Section):
    """An n-gram model of symbols that helps the beam search."""

    order: int = Field(default=4, ge=1, le=8)
    """Symbols before the next one that it looks at."""
    weight: float = Field(default=0.5, ge=0, le=10)
    """Factor of its log probability."""
    bonus: float = 0.5
    """Added for each symbol, since every further one costs probability."""


class TranscriptionConfig(Section):
    """Write down what a recording says."""

    kind: Literal["transcription"] = "transcription"
    column: str = "values"
    """Time column: float32 features of one width."""
    target: str = "target"
    """Sequence column: what is said, as text; `metadata['target_vocabulary']` cuts it."""
    stack: int = Field(default=1, ge=1, le=16)
    """So many frames are one step of the model: fewer, wider steps train faster."""
    normalise: Literal["utterance", "none"] = "utterance"
    """Give each feature of a recording mean 0 and deviation 1, which takes out microphone and loudness."""
    masks: int = Field(default=0, ge=0, le=8)
    """Bands of frequency, and as many of time, that are blanked in training (SpecAugment, Park et al. 2019, 1904.08779)."""
    beams: int = Field(default=1, ge=1, le=256)
    """Prefixes that the search keeps; 1 = greedy, the likeliest symbol of each frame."""
    language_model: LanguageModelMixConfig | None = None
    """Needs beams above 1; counted on `metadata['language_model_texts']`."""


class TranscriptionTask(Task):
    """Features in, a log probability of each symbol and of the blank (id 0) out.

    Args:
        config: Names of columns, stacking, search.
        features: Width of a frame (F).
        target: Vocabulary of the texts; its ids 0 and 'start' are never said.
        front_end: What made the features of sound; None = they come as they are.
        lm_texts: For the language model.
    """

    kind = "transcription"
    streams = True
    costly = True
    objective = ("wer", "min")

    def __init__(
        self,
        config: TranscriptionConfig,
        features: int,
        target: Vocabulary,
        front_end: FrontEnd | None = None,
        lm_texts: Sequence[str] = (),
    ) -> None:
        if config.language_model is not None and (config.beams < 2 or not lm_texts):
            raise ConfigError(
                f"task.language_model is set with task.beams = {config.beams} and {len(lm_texts)} texts to count. Set beams to "
                f"2 or more, and write the dataset with metadata={{'{LM_TEXTS}': [...]}}."
            )
        self.config = config
        self.features = features
        self.target = target
        self.front_end = front_end
        self.lm_texts = list(lm_texts) if config.language_model is not None else []

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> TranscriptionTask:
        column = schema.column(config.column)
        if column.axis != "time" or column.dtype != "float32" or column.width is None:
            raise SchemaError(
                f"Column '{config.column}' is {describe_column(column)}, and transcription needs float32 features of one "
                "width a frame. Make them with recurra.data.audio.FrontEnd, or name another column."
            )
        text_column(schema, config.target)
        front = metadata.get("front_end")
        front_end = None if front is None else FrontEnd.from_json(front)
        target = target_vocabulary_of(metadata, config.target)
        return cls(config, column.width, target, front_end, metadata.get(LM_TEXTS, ()))

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> TranscriptionTask:
        front = description["front_end"]
        return cls(
            TranscriptionConfig.model_validate(description["config"]),
            description["features"],
            Vocabulary.from_json(description["target_vocabulary"]),
            None if front is None else FrontEnd.from_json(front),
            description["lm_texts"],
        )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "features": self.features,
            "target_vocabulary": self.target.to_json(),
            "front_end": None if self.front_end is None else self.front_end.to_json(),
            "lm_texts": self.lm_texts,
        }

    def build_model(self, config: ModelConfig) -> SequenceModel:
        width = self.features * self.config.stack
        return SequenceModel(config, ModelShape("features", width, self.target.size, per_step=True))

    @property
    def lookahead(self) -> int:
        return 0

    def tensors(self, batch: Batch) -> TaskTensors:
        """Targets: `symbols` [B, U], `symbol_count` [B], `real` [B], and `reference` [B, S], the text in bytes.

        Raises:
            ConfigError: The batch holds windows; a text belongs to a whole recording.
        """
        if self.config.target not in batch.columns:
            raise ConfigError(
                "Transcription reads whole recordings, but the data comes in windows. "
                "Remove train.truncated_bptt and set data.mode to buckets."
            )
        frames_BTF = batch.columns[self.config.column].astype(np.float32)
        if self.config.normalise == "utterance":
            frames_BTF = standardise(frames_BTF, batch.lengths)
        texts = [str(text) for text in batch.columns[self.config.target]]
        symbols_BU, counts_B = pad_ids(encode_all(self.target, texts))
        targets = {
            "symbols": symbols_BU,
            "symbol_count": counts_B,
            "real": torch.from_numpy((batch.weight > 0) & (batch.lengths > 0)),
            "reference": texts_to_bytes(texts),
        }
        return TaskTensors(
            inputs=torch.from_numpy(stack_frames(frames_BTF, self.config.stack)),
            lengths=torch.from_numpy(-(-batch.lengths // self.config.stack)),
            reset=None,
            targets=targets,
        )

    def forward(self, model: Model, tensors: TaskTensors, state: State | None) -> tuple[Tensor, State]:
        """The model's outputs; of masked features while it learns."""
        inputs = tensors.inputs
        if model.training and self.config.masks:
            inputs = mask_spans(inputs, tensors.lengths, self.features, self.config.masks)
        outputs, end = model(inputs, state, tensors.lengths)
        return outputs, end

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Nats a symbol of the text, summed over all alignments. A text that is too long for its frames costs nothing: no
        alignment could say it. Errors are counted where no gradient is wanted."""
        real_B, counts_B = tensors.targets["real"], tensors.targets["symbol_count"]
        logs_BTK = functional.log_softmax(outputs, dim=-1)
        nll_B = (
            functional.ctc_loss(
                logs_BTK[real_B].transpose(0, 1),
                tensors.targets["symbols"][real_B],
                tensors.lengths[real_B.cpu()],
                counts_B[real_B].cpu(),
                blank=BLANK,
                reduction="none",
                zero_infinity=True,
            )
            if bool(real_B.any())
            else logs_BTK.new_zeros(1)
        )
        sums = {}
        if not outputs.requires_grad:
            answers = self._answers(logs_BTK, tensors)
            sums = self._errors(answers, tensors)
        return Loss(total=nll_B.sum(), count=(counts_B * real_B).sum(), sums=sums)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` in nats a symbol; `wer` and `cer`, edits over words and over characters of the truth, in percent."""
        metrics = {"loss": total / max(count, 1.0)}
        if "words" in sums:
            metrics |= {
                "wer": 100 * sums["word_edits"] / max(sums["words"], 1.0),
                "cer": 100 * sums["character_edits"] / max(sums["characters"], 1.0),
                "words": sums["words"],
            }
        return metrics

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """`values` [T, F]; with a front end also `samples` at its rate, or `audio`, a WAV file in base64."""
        if context is not None:
            raise RequestError("A recording is transcribed as a whole. Send it to /v1/predict.", code="whole_only")
        names = ("values",) if self.front_end is None else ("values", "samples", "audio")
        fields = fields_of(instance, names, self._example)
        given = [name for name in names if name in fields]
        if len(given) != 1:
            seen = " and ".join(given) or f"no {' or '.join(names)}"
            raise RequestError(f"The instance has {seen}. Send one of them, such as {self._example}.", code="one_of")
        frames_TF = self._frames(fields, given[0])
        if not len(frames_TF):
            raise RequestError(f"'values' has no frame. Send {self._example}.", code="empty", param="values")
        if self.config.normalise == "utterance":
            frames_TF = standardise(frames_TF[None], np.array([len(frames_TF)]))[0]
        return Encoded(inputs=stack_frames(frames_TF[None], self.config.stack)[0])

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """The text. Options: `beams` (1 = greedy), and with more than one `alternatives`, so many other texts."""
        beams = whole_number(options, "beams", 1, 256, self.config.beams)
        wanted = whole_number(options, "alternatives", 0, beams - 1, 0)
        logs_TK = functional.log_softmax(torch.from_numpy(output), dim=-1).numpy()
        found = self._search(logs_TK, beams)[: wanted + 1]
        answers = [{"text": self.target.decode(symbols).strip(), "score": score} for symbols, score in found]
        return {**answers[0], "alternatives": answers[1:]}

    def request_schema(self) -> dict[str, Any]:
        """`values`; `samples` or `audio` where there is a front end."""
        frame = {"type": "array", "items": {"type": "number"}, "minItems": self.features, "maxItems": self.features}
        properties: dict[str, Any] = {"values": {"type": "array", "items": frame, "minItems": 1}}
        if self.front_end is not None:
            rate = f"One channel, {self.front_end.rate} a second"
            properties["samples"] = {
                "type": "array",
                "items": {"type": "number"},
                "description": f"{rate}, in [-1, 1).",
            }
            properties["audio"] = {"type": "string", "description": f"A WAV file in base64. {rate}, PCM."}
        return {
            "type": "object",
            "properties": properties,
            "oneOf": [{"required": [name]} for name in properties],
            "additionalProperties": False,
        }

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """The first recordings' texts beside the answers."""
        answers = self._answers(functional.log_softmax(outputs, dim=-1), tensors)
        pairs = zip(bytes_to_texts(tensors.targets["reference"]), answers, strict=True)
        return [{"reference": text, "answer": answer} for text, answer in pairs if answer is not None][:8]

    def _frames(self, fields: Mapping[str, Any], name: str) -> NDArray[np.float32]:
        if name == "values":
            return step_field(fields, name, self.features).astype(np.float32)
        assert self.front_end is not None
        samples = number_field(fields, name) if name == "samples" else audio_field(fields, name, self.front_end.rate)
        try:
            return self.front_end.features(samples)
        except DataError as exc:
            raise RequestError(f"'{name}' is too short: {exc}", code="too_short", param=name) from exc

    def _search(self, logs_TK: NDArray[np.float32], beams: int) -> list[tuple[list[int], float]]:
        if beams == 1:
            return [(greedy(logs_TK), float(logs_TK.max(1).sum()))]
        return prefix_search(logs_TK, beams, self._mixing)

    def _answers(self, logs_BTK: Tensor, tensors: TaskTensors) -> list[str | None]:
        """The text of each row; None for filler."""
        rows = zip(logs_BTK.cpu().numpy(), tensors.lengths.tolist(), tensors.targets["real"].tolist(), strict=True)
        return [
            self.target.decode(self._search(logs_TK[:length], self.config.beams)[0][0]) if real else None
            for logs_TK, length, real in rows
        ]

    def _errors(self, answers: list[str | None], tensors: TaskTensors) -> dict[str, Tensor]:
        totals = dict.fromkeys(error_counts("", ""), 0)
        for text, answer in zip(bytes_to_texts(tensors.targets["reference"]), answers, strict=True):
            if answer is not None:
                for name, count in error_counts(text, answer).items():
                    totals[name] += count
        return {name: torch.tensor(count) for name, count in totals.items()}

    @cached_property
    def _mixing(self) -> Mixing | None:
        mix = self.config.language_model
        if mix is None:
            return None
        sequences = encode_all(self.target, self.lm_texts)
        return Mixing(mix.weight, mix.bonus, count_ngrams(sequences, self.target.size, mix.order, self.target.bos))

    @property
    def _example(self) -> str:
        numbers = ", ".join(["0.5"] * min(self.features, 3)) + (", ..." if self.features > 3 else "")
        return f'{{"values": [[{numbers}]]}}'
