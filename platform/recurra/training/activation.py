"""Activation regularisation: what the core's outputs cost (Merity, McCann, Socher 2017, arXiv 1708.01009)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from recurra.errors import ConfigError
from recurra.models.config import RegularisationConfig
from recurra.models.core import mask_of
from recurra.models.sequence import Model, SequenceModel


class ActivationPenalty:
    """Watches a model's core and says what its last outputs cost.

    With an output at every step each real step counts, and the trainer divides by the counted items, which are about as
    many: AWD-LSTM's mean. With one output a sequence it is the mean over the sequence's steps. Either way the sum over
    ranks does not depend on how rows are spread over them.

    Args:
        model: Its core's outputs are looked at.
        config: `activation` and `temporal_activation`.
    """

    def __init__(self, model: Model, config: RegularisationConfig) -> None:
        self._asked = bool(config.activation or config.temporal_activation)
        if self._asked and not isinstance(model, SequenceModel):
            raise ConfigError(
                f"model.regularisation.activation is {config.activation} and temporal_activation {config.temporal_activation}, "
                "but this task's model has more than one core. Set both to 0."
            )
        self._model = model
        self._config = config
        self._y_BTH: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The model's forward pass goes in here."""
        if not self._asked:
            yield
            return
        assert isinstance(self._model, SequenceModel)
        handle = self._model.core.register_forward_hook(self._keep)
        try:
            yield
        finally:
            handle.remove()

    def cost(self, lengths_B: Tensor, reset_BT: Tensor | None) -> Tensor | None:
        """A scalar to add to the sum of the losses of the rows that went through; None where nothing is asked for.

        Args:
            lengths_B: Real steps of each row.
            reset_BT: Where sequences start: there is no change from the step before; None = one sequence a row.
        """
        y_BTH, self._y_BTH = self._y_BTH, None
        if y_BTH is None:
            return None
        y_BTH = y_BTH.float()
        real_BT = mask_of(lengths_B, y_BTH.shape[1], y_BTH.device)
        squares_BT = y_BTH.square().mean(2)
        changes_BT = (y_BTH[:, 1:] - y_BTH[:, :-1]).square().mean(2)
        goes_on_BT = real_BT[:, 1:] if reset_BT is None else real_BT[:, 1:] & ~reset_BT[:, 1:]
        cost_B = self._config.activation * self._over_steps(squares_BT, real_BT)
        cost_B = cost_B + self._config.temporal_activation * self._over_steps(changes_BT, goes_on_BT)
        return cost_B.sum()

    def _over_steps(self, values_BT: Tensor, counted_BT: Tensor) -> Tensor:
        total_B = (values_BT * counted_BT).sum(1)
        return total_B if self._model.shape.per_step else total_B / counted_BT.sum(1).clamp(min=1)

    def _keep(self, module: torch.nn.Module, inputs: object, output: tuple[Tensor, object]) -> None:
        self._y_BTH = output[0]
