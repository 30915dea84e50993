"""The `model` section of the job file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recurra.config.section import Section


class NtmConfig(Section):
    """External memory of a Neural Turing Machine (Graves, Wayne, Danihelka 2014)."""

    memory_rows: int = Field(default=128, ge=2, le=65536)
    """Rows of the memory matrix (N)."""
    memory_width: int = Field(default=20, ge=1, le=4096)
    """Numbers in a row (M)."""
    read_heads: int = Field(default=1, ge=1, le=64)
    write_heads: int = Field(default=1, ge=1, le=64)
    shift_range: int = Field(default=1, ge=1, le=16)
    """Largest rotation of a weighting in one step; a head chooses among 2 * shift_range + 1 shifts."""
    controller: Literal["lstm", "gru", "feed_forward"] = "lstm"
    memory_start: Literal["constant", "learned", "random"] = "constant"
    """Constant 1e-6 converges fastest (Collier and Beel 2018, arXiv 1807.08518)."""


class RegularisationConfig(Section):
    """What keeps a model from learning its training data by heart."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance to drop a unit of the embedding, between layers and of the core's output; features are never dropped."""
    variational: bool = False
    """One dropout mask for all time steps of a window (Gal and Ghahramani 2016, arXiv 1512.05287)."""
    weight_drop: float = Field(default=0.0, ge=0, lt=1)
    """Chance to drop a recurrent weight (Merity et al. 2017, arXiv 1708.02182); rnn, gru and lstm."""
    embedding_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance to drop a whole word of the embedding, everywhere in the batch."""
    l1: float = Field(default=0.0, ge=0)
    """Factor of the sum of absolute weights that is added to the loss."""
    l2: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW); not applied to biases and norms."""


class ModelConfig(Section):
    """Embedding, recurrent core, attention or pooling."""

    cell: Literal["rnn", "gru", "lstm", "ntm"] = "lstm"
    hidden_size: int = Field(default=256, ge=1, le=65536)
    """Units in each layer (H)."""
    layers: int = Field(default=1, ge=1, le=64)
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """Of rnn cells; gru and lstm always use tanh."""
    bidirectional: bool = False
    """Read each sequence from both ends. Such a model cannot step, so it has no sessions."""
    embedding_size: int | None = Field(default=None, ge=1)
    """Width of the token embedding; null = hidden_size. Ignored for feature inputs."""
    tied_embeddings: bool = False
    """Use the embedding's weights in the output layer, too (needs embedding_size = hidden_size)."""
    residual: bool = False
    """Add each layer's input to its output, from the second layer on."""
    attention: Literal["none", "additive", "multiplicative", "multi_head"] = "none"
    """Attention over the states of a whole sequence; for tasks with one output a sequence."""
    pooling: Literal["last", "mean", "max"] = "last"
    """How a sequence becomes one vector when attention is none; for tasks with one output a sequence."""
    learned_initial_state: bool = False
    ntm: NtmConfig = NtmConfig()
    regularisation: RegularisationConfig = RegularisationConfig()

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        embedding = self.embedding_size or self.hidden_size
        width = self.hidden_size * (2 if self.bidirectional else 1)
        if self.tied_embeddings and embedding != width:
            raise ValueError(
                f"model.tied_embeddings is true, but the embedding has {embedding} units and the core's output {width}. "
                f"Set model.embedding_size to {width}."
            )
        if self.cell == "ntm" and (self.layers != 1 or self.bidirectional):
            raise ValueError(
                f"model.cell is ntm with layers = {self.layers} and bidirectional = {self.bidirectional}. "
                "Set layers to 1 and bidirectional to false."
            )
        return self
