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
    controller_start: float = Field(default=5.0, gt=0, le=100)
    """The controller's weights start evenly within +-this / sqrt(its inputs). At 5 its state remembers long and is chaotic,
    which copying is learned from; at 2 it is a code of the last few steps, which n-grams are learned from."""
    backward_limit: float | None = Field(default=None, gt=0)
    """Largest absolute value of one number of the state's gradient as it goes back from step to step (10 in the paper, whose
    loss is one sequence's); keeps the gradients of long sequences from exploding. null = none."""
    paired_heads: bool = False
    """A write head works where the read head of its number does: it has its key, strength, shift and sharpness, and a gate, erase
    and add vector of its own. What is found can be taken away at once, as sorting needs it; not in the paper."""
    heads_start: Literal["neutral", "content", "tape", "queue"] = "neutral"
    """What heads do before training. `neutral`: a little of everything. `content`: look for their keys and stay on what they
    find, which suits look-up tables and needs a memory_start whose rows differ. `tape`: write row after row, and look for
    the row where the like was written, to read on from there; it suits recalling what followed. `queue`: half of both, staying
    or going on to the next row; with paired heads it suits taking out one of many."""
    memory_start: Literal["constant", "learned", "random"] = "constant"
    """Constant 1e-6 converges fastest (Collier and Beel 2018, arXiv 1807.08518)."""

    @model_validator(mode="after")
    def _check_pairs(self) -> NtmConfig:
        if self.paired_heads and self.write_heads > self.read_heads:
            raise ValueError(
                f"model.ntm.paired_heads is true with {self.write_heads} write heads and {self.read_heads} read heads. "
                f"Set read_heads to {self.write_heads} or more."
            )
        return self

    @model_validator(mode="after")
    def _check_starts(self) -> NtmConfig:
        if self.heads_start == "content" and self.memory_start == "constant":
            raise ValueError(
                "model.ntm.heads_start is content with memory_start = constant, where every row answers to every key alike. "
                "Set memory_start to random or learned."
            )
        return self


class RegularisationConfig(Section):
    """What keeps a model from learning its training data by heart."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance to drop a unit of the embedding, between layers and of the core's output; features are never dropped."""
    variational: bool = False
    """One dropout mask for all time steps of a window (Gal and Ghahramani 2016, arXiv 1512.05287)."""
    weight_drop: float = Field(default=0.0, ge=0, lt=1)
    """Chance to drop a recurrent weight (Merity et al. 2017, arXiv 1708.02182); rnn, gru and lstm."""
    zoneout: float = Field(default=0.0, ge=0, lt=1)
    """Chance that a unit keeps its last value (Krueger et al. 2017, arXiv 1606.01305); rnn, gru and lstm."""
    embedding_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance to drop a whole word of the embedding, everywhere in the batch."""
    l1: float = Field(default=0.0, ge=0)
    """Factor of the sum of absolute weights that is added to the loss."""
    activation: float = Field(default=0.0, ge=0)
    """AR (Merity, McCann, Socher 2017, arXiv 1708.01009): factor of the mean squared output of the core, dropout included;
    2 in AWD-LSTM. Added to what is minimised, not to the loss that is shown."""
    temporal_activation: float = Field(default=0.0, ge=0)
    """TAR (the same paper): factor of the mean squared change of the core's output from step to step; 1 in AWD-LSTM."""
    l2: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW); not applied to biases and norms."""


class ModelConfig(Section):
    """Embedding, recurrent core, attention or pooling."""

    cell: Literal["rnn", "gru", "lstm", "minlstm", "mingru", "ntm"] = "lstm"
    """minlstm and mingru (arXiv 2410.01201) train in parallel over time; ntm has an external memory."""
    hidden_size: int = Field(default=256, ge=1, le=65536)
    """Units in each layer (H)."""
    layers: int = Field(default=1, ge=1, le=64)
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """Of rnn cells; gru and lstm always use tanh."""
    layer_norm: bool = False
    """Normalise the pre-activations of rnn, gru and lstm (Ba, Kiros, Hinton 2016, arXiv 1607.06450)."""
    peephole: bool = False
    """Let the gates of an lstm see its cell state (Gers, Schraudolph, Schmidhuber 2002)."""
    projection_size: int | None = Field(default=None, ge=1)
    """Units of an lstm's output, fewer than hidden_size (Sak et al. 2014, arXiv 1402.1128); null = hidden_size."""
    recurrent_start: Literal["orthogonal", "xavier"] = "orthogonal"
    """What the recurrent matrix of each gate of rnn, gru and lstm starts as: orthogonal (Saxe et al. 2014, arXiv 1312.6120)
    neither shrinks nor blows up what it carries; xavier is uniform (Glorot and Bengio 2010)."""
    forget_bias: float = Field(default=1.0, ge=-20, le=20)
    """What an lstm's forget gates start from (Jozefowicz, Zaremba, Sutskever 2015); chrono_steps takes its place."""
    chrono_steps: int | None = Field(default=None, ge=2)
    """Start gates so that units remember for 1 up to so many steps (Tallec and Ollivier 2018, arXiv 1804.11188)."""
    bidirectional: bool = False
    """Read each sequence from both ends. Such a model cannot step, so it has no sessions."""
    embedding_size: int | None = Field(default=None, ge=1)
    """Width of the token embedding; null = hidden_size. Ignored for feature inputs."""
    embedding_std: float | None = Field(default=None, gt=0)
    """Standard deviation that the embedding starts with; null = 1 / sqrt(its width), which suits tied embeddings. With
    1, byte language models learn faster from the first step: 2.46 against 2.70 bits a byte after a million bytes."""
    tied_embeddings: bool = False
    """Use the embedding's weights in the output layer, too (needs embedding_size = hidden_size)."""
    residual: bool = False
    """Add each layer's input to its output, from the second layer on."""
    attention: Literal["none", "additive", "multiplicative", "multi_head"] = "none"
    """Attention over the states of a whole sequence (tasks with one output a sequence), or over `attention_window`."""
    attention_window: int | None = Field(default=None, ge=2)
    """Let each step attend to so many of the last states, itself included. Such a model can step; null = whole sequence."""
    pooling: Literal["last", "mean", "max"] = "last"
    """How a sequence becomes one vector when attention is none; for tasks with one output a sequence."""
    learned_initial_state: bool = False
    """Learn what each sequence starts from, instead of zeros. An ntm always does."""
    ntm: NtmConfig = NtmConfig()
    regularisation: RegularisationConfig = RegularisationConfig()

    @property
    def output_size(self) -> int:
        """Units of one output of a recurrent core (H)."""
        return (self.projection_size or self.hidden_size) * (2 if self.bidirectional else 1)

    @model_validator(mode="after")
    def _check_tying(self) -> ModelConfig:
        embedding = self.embedding_size or self.hidden_size
        if self.tied_embeddings and self.cell == "ntm":
            raise ValueError(
                "model.tied_embeddings is true with model.cell = ntm, whose output has its reads beside the hidden units. "
                "Set tied_embeddings to false."
            )
        if self.tied_embeddings and embedding != self.output_size:
            raise ValueError(
                f"model.tied_embeddings is true, but the embedding has {embedding} units and the core's output "
                f"{self.output_size}. Set model.embedding_size to {self.output_size}."
            )
        return self

    @model_validator(mode="after")
    def _check_options_of_the_cell(self) -> ModelConfig:
        gated, lstm = ("rnn", "gru", "lstm"), ("lstm",)
        needs = {
            "layer_norm": (self.layer_norm, gated),
            "regularisation.zoneout": (self.regularisation.zoneout, gated),
            "regularisation.weight_drop": (self.regularisation.weight_drop, gated),
            "recurrent_start": (self.recurrent_start if self.recurrent_start != "orthogonal" else None, gated),
            "forget_bias": (self.forget_bias if self.forget_bias != 1 else None, lstm),
            "peephole": (self.peephole, lstm),
            "projection_size": (self.projection_size, lstm),
            "chrono_steps": (self.chrono_steps, ("gru", "lstm", "minlstm", "mingru")),
        }
        for name, (value, cells) in needs.items():
            if value and self.cell not in cells:
                raise ValueError(
                    f"model.{name} is {value}, which a {self.cell} does not have. Remove it, or set model.cell to "
                    f"{' or '.join(cells)}."
                )
        if self.projection_size is not None and self.projection_size >= self.hidden_size:
            raise ValueError(
                f"model.projection_size is {self.projection_size} and hidden_size {self.hidden_size}. "
                "Set projection_size below hidden_size, or remove it."
            )
        return self

    @model_validator(mode="after")
    def _check_attention(self) -> ModelConfig:
        if self.attention_window is not None and (self.attention == "none" or self.bidirectional):
            raise ValueError(
                f"model.attention_window is {self.attention_window} with attention = {self.attention} and bidirectional = "
                f"{self.bidirectional}. Set attention to multi_head and bidirectional to false, or remove attention_window."
            )
        return self

    @model_validator(mode="after")
    def _check_ntm(self) -> ModelConfig:
        if self.cell == "ntm" and (self.layers != 1 or self.bidirectional):
            raise ValueError(
                f"model.cell is ntm with layers = {self.layers} and bidirectional = {self.bidirectional}. "
                "Set layers to 1 and bidirectional to false."
            )
        return self
