"""A sequence in, another one out: an encoder, and a decoder that attends to its states (Bahdanau, Cho, Bengio 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra.errors import ConfigError, ModelError
from recurra.models.beam import Hypotheses, Search, beam_search
from recurra.models.build import build_core
from recurra.models.config import ModelConfig
from recurra.models.core import mask_of
from recurra.models.decoder import AttentionDecoder, Source
from recurra.models.dropout import TimeDropout
from recurra.models.embedding import TokenEmbedding
from recurra.models.sequence import Model, ModelShape
from recurra.models.state import State, StateSpec

_LONGER = 10
"""Tokens that an answer may have beyond twice its source."""


@dataclass(frozen=True)
class Languages:
    """Sizes of the two vocabularies."""

    source: int
    target: int


class EncoderDecoder(Model):
    """Trained by `teach`; `forward` searches. State: the encoder's, since a decoder's lives within one answer.

    Args:
        config: Of the encoder; the decoder has the same layers, forwards, with `attention` over the encoder's states.
        languages: Sizes of vocabularies.
        search: How `forward` looks for an answer.
    """

    steppable = False

    def __init__(self, config: ModelConfig, languages: Languages, search: Search) -> None:
        super().__init__()
        if config.tied_embeddings or config.attention_window is not None:
            raise ConfigError(
                f"model.tied_embeddings is {config.tied_embeddings} and model.attention_window {config.attention_window}, "
                "which an encoder-decoder does not have. Remove both."
            )
        self.config = config
        self.search = search
        self.shape = ModelShape("tokens", languages.source, search.beams * (2 + search.longest), per_step=False)
        width = config.embedding_size or config.hidden_size
        regularisation = config.regularisation
        self.embedding = TokenEmbedding(languages.source, width, regularisation.embedding_dropout, config.embedding_std)
        self.given = TokenEmbedding(languages.target, width, regularisation.embedding_dropout, config.embedding_std)
        self.dropout = TimeDropout(regularisation.dropout, variational=regularisation.variational)
        self.core = build_core(config, width)
        self.decoder = AttentionDecoder(config, width, self.core.output_size)
        hidden = {t.name: t.shape[0] for t in self.decoder.stack.state_spec.tensors if t.name.endswith("h")}
        self.bridge = nn.ModuleDict(
            {name.replace(".", "_"): nn.Linear(self.core.output_size, size) for name, size in hidden.items()}
        )
        self.head = nn.Linear(self.decoder.output_size, languages.target)

    @property
    def state_spec(self) -> StateSpec:
        return self.core.state_spec

    def zero_state(self, batch: int, device: torch.device | str = "cpu") -> State:
        return self.core.zero_state(batch, device)

    def teach(self, source_BT: Tensor, lengths_B: Tensor | None, given_BU: Tensor) -> tuple[Tensor, State]:
        """Teacher forcing: logits [B, U, V] of the token after each given one, and the encoder's state.

        Args:
            source_BT: Token ids.
            lengths_B: Real steps of the source; None = all.
            given_BU: The right answer, with the end token before it.
        """
        source, state, after = self._read(source_BT, None, lengths_B)
        y_BUH, _ = self.decoder(self.dropout(self.given(given_BU)), state, source)
        logits_BUV: Tensor = self.head(self.dropout(y_BUH))
        return logits_BUV, after

    def forward(
        self,
        inputs: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """The answers that beam search finds, as numbers [B, N * (2 + L)] that `unpack` reads; no gradients."""
        with torch.no_grad():
            source, start, after = self._read(inputs, state, lengths_B)
            found = self._search(source, start, _limits(inputs, lengths_B, self.search.longest))
        numbers = torch.cat([found.scores_BN[:, :, None], found.lengths_BN[:, :, None], found.tokens_BNL], 2)
        return numbers.flatten(1).float(), after

    def step(self, inputs_B: Tensor, state: State) -> tuple[Tensor, State]:
        raise ModelError(
            "An encoder-decoder cannot step: it answers once it has read all of its source. "
            "Send whole sequences to /v1/predict."
        )

    def _read(self, source_BT: Tensor, state: State | None, lengths_B: Tensor | None) -> tuple[Source, State, State]:
        """What the decoder attends to, where it starts, and the encoder's last state."""
        batch, steps = source_BT.shape
        encoded_BTH, after = self.core(self.dropout(self.embedding(source_BT)), state, lengths_B)
        lengths = torch.full((batch,), steps) if lengths_B is None else lengths_B
        mask_BT = mask_of(lengths, steps, source_BT.device)
        mean_BH = encoded_BTH.masked_fill(~mask_BT[:, :, None], 0).sum(1) / mask_BT.sum(1).clamp(min=1)[:, None]
        start = self.decoder.zero_state(batch, source_BT.device)
        start |= {name: self.bridge[name.replace(".", "_")](mean_BH).tanh() for name in start if self._bridged(name)}
        return self.decoder.source(encoded_BTH, lengths), start, after

    def _bridged(self, name: str) -> bool:
        return name.replace(".", "_") in self.bridge

    def _search(self, source: Source, start: State, limits_B: Tensor) -> Hypotheses:
        rows_R = torch.arange(len(limits_B), device=limits_B.device).repeat_interleave(self.search.beams)
        repeated = source.rows(rows_R)

        def advance(last_R: Tensor, state: State) -> tuple[Tensor, State]:
            y_RH, following = self.decoder.step(self.given(last_R), state, repeated)
            return functional.log_softmax(self.head(y_RH), dim=-1), following

        state = {name: value.index_select(0, rows_R) for name, value in start.items()}
        return beam_search(advance, state, limits_B, self.search)


def unpack(numbers: Tensor, search: Search) -> list[list[tuple[float, list[int]]]]:
    """For each row of what `EncoderDecoder.forward` gave: score and tokens of its hypotheses, best first."""
    rows = numbers.view(len(numbers), search.beams, 2 + search.longest).tolist()
    return [
        [(one[0], [int(token) for token in one[2 : 2 + int(one[1])]]) for one in row if one[1] >= 0] for row in rows
    ]


def _limits(source_BT: Tensor, lengths_B: Tensor | None, longest: int) -> Tensor:
    """[B] tokens of an answer at most, so that one that does not end costs no more than its source deserves."""
    batch, steps = source_BT.shape
    lengths = torch.full((batch,), steps) if lengths_B is None else lengths_B
    return (2 * lengths + _LONGER).clamp(max=longest).to(source_BT.device)
