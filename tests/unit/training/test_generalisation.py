import numpy as np
import pytest
import torch

from recurra.models.config import ModelConfig
from recurra.tasks.algorithmic import AlgorithmicTask
from recurra.tasks.problems.copying import Copy, RepeatCopy
from recurra.tasks.problems.ngrams import DynamicNgrams
from recurra.training.generalisation import metrics_at


def untrained(task: AlgorithmicTask):
    torch.manual_seed(0)
    return task.build_model(ModelConfig(cell="gru", hidden_size=8))


def test_a_model_that_knows_nothing_pays_a_bit_for_each_bit():
    """By hand: 3 vectors of 4 bits, twice, and the end marker's step of 5 bits; the sizes are those asked for."""
    task = AlgorithmicTask(RepeatCopy(width=4))
    model = untrained(task)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)

    found = metrics_at(task, model, [3, 2], sequences=7, seed=0)
    assert found["bits_per_sequence"] == pytest.approx(3 * 2 * 5 + 5)
    assert found["sequences"] == 7


def test_more_sequences_than_fit_at_once_are_all_looked_at():
    """Long sequences are evaluated in several batches; the result is that of one."""
    task = AlgorithmicTask(Copy(width=2))
    model = untrained(task)
    parts = metrics_at(task, model, [400], sequences=25, seed=3)

    with torch.no_grad():
        logits = [
            (model(torch.from_numpy(example["inputs"])[None])[0][0, 401:], example["targets"][401:])
            for example in task.problem.examples(25, [(400, 400)], 3)
        ]
    wrong = np.mean([((answer.numpy() > 0) != bits).sum() for answer, bits in logits])
    assert parts["wrong_bits"] == pytest.approx(wrong)


def test_equal_seeds_ask_equal_problems():
    """Two models are compared on the same sequences."""
    task = AlgorithmicTask(DynamicNgrams(context=2))
    first, again, other = (metrics_at(task, untrained(task), [30], sequences=5, seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first["optimal_bits"] != other["optimal_bits"]
