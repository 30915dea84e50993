"""A tag for each word: named entities, parts of speech, slots."""

from __future__ import annotations

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
from recurra.data.vocabulary import CharacterVocabulary, Vocabulary, WordVocabulary, cut_words
from recurra.data.words import spellings
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.models.crf import PairwiseHead, best_path, log_partition, pair_scores, path_score
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.models.words import WordFront, WordSizes
from recurra.tasks.base import Encoded, Loss, Task, TaskTensors
from recurra.tasks.columns import describe_column, token_column, vocabulary_of
from recurra.tasks.instances import fields_of, text_field, word_field
from recurra.tasks.spans import agreement, f1, spans_of

_EXAMPLE = '{"words": ["Ada", "lives", "in", "Paris"]}'


class TaggingConfig(Section):
    """Give each word of a sequence a tag."""

    kind: Literal["tagging"] = "tagging"
    column: str = "tokens"
    """Time column: ids of words."""
    tags: str = "tags"
    """Time column: index into the dataset's list of tags."""
    characters: str | None = None
    """Time column of character ids, a vector [W] a word; null = words are known by their ids alone."""
    character_filters: int = Field(default=50, ge=1, le=4096)
    """Numbers that a convolution makes of a word's characters."""
    crf: bool = True
    """Score the tags of a sentence together (conditional random field); false = each by itself."""


class TaggingTask(Task):
    """Words in, scores of tags out; of pairs of neighbouring tags with a CRF.

    Args:
        config: Names of columns, CRF.
        tags: Names, in the order of their indices; IOB2 (`B-person`, `I-person`, `O`) where they mark entities.
        vocabulary: Of words.
        characters: Vocabulary of a word's characters and how many of them are looked at; None = none are.
    """

    kind = "tagging"
    streams = True
    objective = ("f1", "max")

    def __init__(
        self,
        config: TaggingConfig,
        tags: Sequence[str],
        vocabulary: WordVocabulary,
        characters: tuple[CharacterVocabulary, int] | None,
    ) -> None:
        if len(tags) < 2 or len(set(tags)) < len(tags):
            raise SchemaError(
                f"The dataset's tags are {list(tags)}. Give at least two different names in metadata['tags']."
            )
        self.config = config
        self.tags = list(tags)
        self.vocabulary = vocabulary
        self.characters = characters

    @classmethod
    def from_dataset(cls, config: Any, schema: SequenceSchema, metadata: Mapping[str, Any]) -> TaggingTask:
        token_column(schema, config.column)
        token_column(schema, config.tags)
        if "tags" not in metadata:
            raise SchemaError(
                "The dataset's metadata has no 'tags', so the tags have no names. "
                "Write it with metadata={'tags': ['O', 'B-person', 'I-person']}, in the order of the indices."
            )
        vocabulary = _words_of(vocabulary_of(metadata, config.column))
        if config.characters is None:
            return cls(config, metadata["tags"], vocabulary, None)
        column = schema.column(config.characters)
        if column.axis != "time" or column.width is None or column.dtype in ("float32", "string"):
            raise SchemaError(
                f"Column '{config.characters}' is {describe_column(column)}, and task.characters needs character ids: a "
                "vector of a whole type each step. Write it with recurra.data.words.spellings, or set task.characters to null."
            )
        if "character_vocabulary" not in metadata:
            raise SchemaError(
                "The dataset's metadata has no 'character_vocabulary'. Write there what "
                "recurra.data.words.build_character_vocabulary gave, or set task.characters to null."
            )
        letters = Vocabulary.from_json(metadata["character_vocabulary"])
        assert isinstance(letters, CharacterVocabulary)
        return cls(config, metadata["tags"], vocabulary, (letters, column.width))

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> TaggingTask:
        characters = None
        if description["characters"] is not None:
            letters = Vocabulary.from_json(description["characters"]["vocabulary"])
            assert isinstance(letters, CharacterVocabulary)
            characters = (letters, description["characters"]["width"])
        return cls(
            TaggingConfig.model_validate(description["config"]),
            description["tags"],
            _words_of(Vocabulary.from_json(description["vocabulary"])),
            characters,
        )

    def describe(self) -> dict[str, Any]:
        characters = self.characters
        return {
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "tags": self.tags,
            "vocabulary": self.vocabulary.to_json(),
            "characters": None
            if characters is None
            else {"vocabulary": characters[0].to_json(), "width": characters[1]},
        }

    def build_model(self, config: ModelConfig) -> SequenceModel:
        count = len(self.tags)
        output_size = (count + 1) * count if self.config.crf else count
        front = None
        if self.characters is not None:
            letters, width = self.characters
            own = config.embedding_size or config.hidden_size
            sizes = WordSizes(self.vocabulary.size, letters.size, own, self.config.character_filters)
            front = WordFront(sizes, config.regularisation.embedding_dropout)
            shape = ModelShape("features", 1 + width, output_size, per_step=True)
        else:
            shape = ModelShape("tokens", self.vocabulary.size, output_size, per_step=True)
        if not self.config.crf:
            return SequenceModel(config, shape, front=front)
        return SequenceModel(config, shape, front=front, head=lambda size: PairwiseHead(size, count))

    @property
    def lookahead(self) -> int:
        return 0

    def tensors(self, batch: Batch) -> TaskTensors:
        """Targets: `tags` [B, T] and `counted` [B, T], True at the real words of real sentences.

        Raises:
            ConfigError: The batch holds windows; a sentence is tagged as a whole.
        """
        if batch.lanes is not None or bool(batch.reset[:, 1:].any()):
            raise ConfigError(
                "Tagging reads whole sentences, but the data comes in windows. "
                "Remove train.truncated_bptt and set data.mode to buckets."
            )
        words_BT = batch.columns[self.config.column]
        inputs = words_BT.astype(np.int64)
        if self.config.characters is not None:
            letters_BTW = batch.columns[self.config.characters]
            inputs = np.concatenate([words_BT[:, :, None].astype(np.float32), letters_BTW.astype(np.float32)], 2)
        counted_BT = (np.arange(words_BT.shape[1]) < batch.lengths[:, None]) & (batch.weight > 0)[:, None]
        return TaskTensors(
            inputs=torch.from_numpy(inputs),
            lengths=torch.from_numpy(batch.lengths),
            reset=None,
            targets={
                "tags": torch.from_numpy(batch.columns[self.config.tags].astype(np.int64)),
                "counted": torch.from_numpy(counted_BT),
            },
        )

    def loss(self, outputs: Tensor, tensors: TaskTensors) -> Loss:
        """Nats over words: of each tag, or with a CRF of the whole path. Entities are counted where no gradient is wanted."""
        tags_BT, counted_BT = tensors.targets["tags"], tensors.targets["counted"]
        if self.config.crf:
            scores = pair_scores(outputs, len(self.tags))
            nll_B = log_partition(scores, counted_BT) - path_score(scores, tags_BT, counted_BT)
            total = (nll_B * counted_BT.any(1)).sum()
        else:
            total = functional.cross_entropy(outputs[counted_BT], tags_BT[counted_BT], reduction="sum")
        sums: dict[str, Tensor] = {}
        if not outputs.requires_grad:
            sums = self._counts(self._path(outputs, counted_BT), tensors)
        return Loss(total=total, count=counted_BT.sum(), sums=sums)

    def metrics(self, total: float, count: float, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` in nats a word, `accuracy` over words; `f1`, `precision` and `recall` over entities (micro average)."""
        metrics = {"loss": total / max(count, 1.0)}
        if "right" in sums:
            hits, guesses, truths = sums["hits"], sums["guesses"], sums["truths"]
            metrics |= {
                "accuracy": sums["right"] / max(count, 1.0),
                "f1": f1(hits, guesses, truths),
                "precision": hits / max(guesses, 1.0),
                "recall": hits / max(truths, 1.0),
                "words": count,
            }
        return metrics

    def encode(self, instance: Any, context: Mapping[str, Any] | None = None) -> Encoded:
        """`words`, or a `text` that is cut as the model's vocabulary cuts words; a session may send a sentence in parts."""
        fields = fields_of(instance, ("words", "text"), _EXAMPLE)
        given = [name for name in ("words", "text") if name in fields]
        if len(given) != 1:
            seen = " and ".join(given) or "neither words nor text"
            raise RequestError(f"The instance has {seen}. Send one of them, such as {_EXAMPLE}.", code="one_of")
        words = (
            cut_words(text_field(fields, "text"), lower_case=False)
            if given == ["text"]
            else word_field(fields, "words")
        )
        if not words:
            raise RequestError(f"'{given[0]}' has no word. Send {_EXAMPLE}.", code="empty", param=given[0])
        ids: NDArray[Any] = self.vocabulary.encode_words(words).astype(np.int64)
        if self.characters is not None:
            letters, width = self.characters
            ids = np.concatenate([ids[:, None], spellings(letters, words, width)], 1).astype(np.float32)
        return Encoded(inputs=ids, context={"words": words, "begins": context is None})

    def decode(self, output: NDArray[np.float32], encoded: Encoded, options: Mapping[str, Any]) -> dict[str, Any]:
        """A tag for each word, and the entities that they mark: words `start` to `end` - 1."""
        words = encoded.context["words"]
        outputs = torch.from_numpy(output)[None]
        mask_BT = torch.ones(1, len(words), dtype=torch.bool)
        path = self._path(outputs, mask_BT, begins=encoded.context["begins"])[0]
        tags = [self.tags[index] for index in path.tolist()]
        entities = [
            {"type": span.kind, "start": span.start, "end": span.end, "text": " ".join(words[span.start : span.end])}
            for span in spans_of(tags)
        ]
        return {"words": words, "tags": tags, "entities": entities}

    def request_schema(self) -> dict[str, Any]:
        """`words`, or `text`."""
        word = {"type": "string", "minLength": 1}
        return {
            "type": "object",
            "properties": {
                "words": {"type": "array", "items": word, "minItems": 1},
                "text": {"type": "string", "minLength": 1, "description": "Cut into words and punctuation marks."},
            },
            "oneOf": [{"required": ["words"]}, {"required": ["text"]}],
            "additionalProperties": False,
            "examples": [{"text": "Ada lives in Paris ."}],
        }

    def samples(self, outputs: Tensor, tensors: TaskTensors) -> list[dict[str, Any]]:
        """The first sentences with their tags and the answers."""
        counted_BT = tensors.targets["counted"]
        path_BT = self._path(outputs, counted_BT)
        rows = []
        for row in range(min(5, outputs.shape[0])):
            steps = int(counted_BT[row].sum())
            if not steps:
                continue
            ids = tensors.inputs[row, :steps] if self.characters is None else tensors.inputs[row, :steps, 0]
            rows.append(
                {
                    "text": self.vocabulary.decode(ids.long().tolist()),
                    "tags": " ".join(self._named(tensors.targets["tags"][row, :steps])),
                    "answer": " ".join(self._named(path_BT[row, :steps])),
                }
            )
        return rows

    def _path(self, outputs: Tensor, counted_BT: Tensor, *, begins: bool = True) -> Tensor:
        """[B, T] the likeliest tags."""
        if self.config.crf:
            return best_path(pair_scores(outputs, len(self.tags)), counted_BT, begins=begins)
        return outputs.argmax(-1)

    def _counts(self, path_BT: Tensor, tensors: TaskTensors) -> dict[str, Tensor]:
        tags_BT, counted_BT = tensors.targets["tags"], tensors.targets["counted"]
        totals = np.zeros(3)
        for row in range(len(tags_BT)):
            mask = counted_BT[row]
            totals += agreement(self._named(tags_BT[row][mask]), self._named(path_BT[row][mask]))
        sums = {name: torch.tensor(value) for name, value in zip(("hits", "guesses", "truths"), totals, strict=True)}
        return {**sums, "right": ((path_BT == tags_BT) & counted_BT).sum()}

    def _named(self, indices: Tensor) -> list[str]:
        return [self.tags[index] for index in indices.tolist()]


def _words_of(vocabulary: Vocabulary) -> WordVocabulary:
    if not isinstance(vocabulary, WordVocabulary):
        raise SchemaError(
            f"The dataset's vocabulary is one of {vocabulary.kind}, and tags belong to words. "
            "Write it with a vocabulary of words (recurra.data.words.build_word_vocabulary)."
        )
    return vocabulary
