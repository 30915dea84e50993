import json

import numpy as np
import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.algorithmic import AlgorithmicConfig, AlgorithmicTask
from recurra.tasks.algorithms import copy_example, copy_examples, copy_schema
from recurra.tasks.build import task_from_dataset, task_from_description

from .conftest import Write, one_epoch

BITS = np.array([[1, 0], [0, 1], [1, 1]])


def test_the_copy_problem_is_the_papers():
    """Vectors, a delimiter on a channel of its own, then nothing to see while they are to be said again."""
    example = copy_example(BITS)

    assert example["inputs"].tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], *[[0, 0, 0]] * 3]
    assert example["targets"].tolist() == [[0, 0]] * 4 + BITS.tolist()
    assert example["counted"].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_equal_seeds_give_equal_problems_of_all_lengths():
    """The data of a job is reproducible, and short problems are not rare."""
    lengths = [len(e["counted"]) // 2 for e in copy_examples(500, width=2, shortest=1, longest=5, seed=3)]
    again = [len(e["counted"]) // 2 for e in copy_examples(500, width=2, shortest=1, longest=5, seed=3)]

    assert lengths == again
    assert min(np.bincount(lengths)[1:]) > 70
    assert set(lengths) == {1, 2, 3, 4, 5}


def test_guessing_costs_one_bit_for_each_bit(write: Write):
    """By hand: sequences of 3 and 1 vectors of 2 bits at probability 1/2 cost 6 and 2 bits, 4 a sequence."""
    task = AlgorithmicTask(AlgorithmicConfig(), 2)
    dataset = write(copy_schema(2), {}, [copy_example(BITS), copy_example(BITS[:1])])
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=4)), "cpu")

    loss = task.loss(torch.zeros(*tensors.inputs.shape[:2], 2), tensors)
    metrics = task.metrics(float(loss.total), float(loss.count), {k: float(v) for k, v in loss.sums.items()})
    assert metrics["bits_per_sequence"] == pytest.approx(4)
    assert metrics["sequences"] == 2
    assert metrics["wrong_bits"] == pytest.approx((4 + 1) / 2)
    assert metrics["solved"] == 0


def test_one_wrong_bit_is_an_unsolved_sequence(write: Write):
    """`solved` is what generalisation is judged by."""
    task = AlgorithmicTask(AlgorithmicConfig(), 2)
    dataset = write(copy_schema(2), {}, [copy_example(BITS), copy_example(BITS[:1])])
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=2)), "cpu")
    outputs = 20 * (2 * tensors.targets["bits"] - 1)
    longer = int(tensors.lengths.argmax())
    outputs[longer, -1, 0] *= -1

    loss = task.loss(outputs, tensors)
    metrics = task.metrics(float(loss.total), float(loss.count), {k: float(v) for k, v in loss.sums.items()})
    assert metrics["solved"] == 0.5
    assert metrics["wrong_bits"] == 0.5
    assert metrics["loss"] == pytest.approx(10)


def test_windows_are_refused(write: Write):
    """A window may hold an answer without its question."""
    task = AlgorithmicTask(AlgorithmicConfig(), 2)
    dataset = write(copy_schema(2), {}, [copy_example(BITS)] * 3)
    with pytest.raises(ConfigError, match="Remove train.truncated_bptt"):
        task.tensors(next(one_epoch(dataset, mode="lanes", batch_sequences=2, window=4)), "cpu")


def test_a_request_poses_the_problem_and_gets_the_bits():
    """The delimiter and the empty steps are the task's business, not the client's."""
    task = AlgorithmicTask(AlgorithmicConfig(), 2)
    encoded = task.encode({"bits": BITS.tolist()})
    assert np.array_equal(encoded.inputs, copy_example(BITS)["inputs"])

    output = np.concatenate([np.full((4, 2), 9.0), 4 * (2.0 * BITS - 1)]).astype(np.float32)
    answer = task.decode(output, encoded, {})
    assert answer["bits"] == BITS.tolist()
    assert answer["probabilities"][0] == pytest.approx([1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))])
    assert task.encode({"inputs": [[0, 0, 1]]}, {}).inputs.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"bits": [[1, 2]]}, "'bits' holds 2. Send 0 and 1 alone"),
        ({"bits": [[1]]}, "'bits' holds a list of 1 at index 0. Send 2 numbers for each step"),
        ({"bits": []}, "'bits' has 0 steps. Send 1 to 4096"),
        ({"bits": [[0, 0]] * 5000}, "'bits' has 5000 steps"),
        ({}, "neither bits nor inputs"),
        ({"bits": 1}, "'bits' is a number. Send a list of steps"),
    ],
)
def test_a_wrong_instance_is_told_what_to_send(instance, message):
    """A client sees nothing but this message."""
    with pytest.raises(RequestError, match=message):
        AlgorithmicTask(AlgorithmicConfig(), 2).encode(instance)


def test_a_described_task_answers_as_the_one_that_was_trained(write: Write):
    """Serving has the description alone, after a way through JSON."""
    dataset = write(copy_schema(2), {}, [copy_example(BITS)])
    task = task_from_dataset(AlgorithmicConfig(), dataset.schema, dataset.metadata)
    rebuilt = task_from_description(json.loads(json.dumps(task.describe())))
    encoded, again = task.encode({"bits": BITS.tolist()}), rebuilt.encode({"bits": BITS.tolist()})
    output = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)

    assert np.array_equal(encoded.inputs, again.inputs)
    assert rebuilt.decode(output, again, {}) == task.decode(output, encoded, {})
    assert rebuilt.describe() == task.describe()


def test_the_models_sizes_come_from_the_data():
    """One input more than bits, for the delimiter."""
    model = AlgorithmicTask(AlgorithmicConfig(), 2).build_model(ModelConfig(cell="ntm", hidden_size=8))

    outputs, _ = model(torch.zeros(1, 7, 3))
    assert outputs.shape == (1, 7, 2)


def test_another_dataset_is_refused():
    """Its columns would be read as bits."""
    schema = SequenceSchema((Column("inputs", "float32", width=2), Column("targets", "uint8", width=2)))
    with pytest.raises(
        SchemaError, match=r"does not have the columns of the copy problem: inputs float32 \[T, W \+ 1\]"
    ):
        task_from_dataset(AlgorithmicConfig(), schema, {})


def test_samples_show_bits_beside_answers(write: Write):
    """The report shows what the numbers mean."""
    task = AlgorithmicTask(AlgorithmicConfig(), 2)
    tensors = task.tensors(
        next(one_epoch(write(copy_schema(2), {}, [copy_example(BITS)]), mode="buckets", batch_sequences=1)), "cpu"
    )

    (sample,) = task.samples(tensors.targets["bits"] - 0.5, tensors)
    assert sample["bits"] == sample["answer"] == BITS.tolist()
