import json
import math

import numpy as np
import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.algorithmic import AlgorithmicConfig, AlgorithmicTask
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.problems.copying import Copy
from recurra.tasks.problems.ngrams import DynamicNgrams
from recurra.tasks.problems.sorting import PrioritySort

from .conftest import Write, one_epoch

BITS = np.array([[1, 0], [0, 1], [1, 1]])
COPY = Copy(width=2)
METADATA = {"problem": COPY.describe()}


def test_guessing_costs_one_bit_for_each_bit(write: Write):
    """By hand: sequences of 3 and 1 vectors of 2 bits at probability 1/2 cost 6 and 2 bits, 4 a sequence."""
    task = AlgorithmicTask(COPY)
    dataset = write(COPY.schema, METADATA, [COPY.of(BITS), COPY.of(BITS[:1])])
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=4)))

    loss = task.loss(torch.zeros(*tensors.inputs.shape[:2], 2), tensors)
    metrics = task.metrics(float(loss.total), float(loss.count), {k: float(v) for k, v in loss.sums.items()})
    assert metrics["bits_per_sequence"] == pytest.approx(4)
    assert metrics["sequences"] == 2
    assert metrics["wrong_bits"] == pytest.approx((4 + 1) / 2)
    assert metrics["solved"] == 0


def test_one_wrong_bit_is_an_unsolved_sequence(write: Write):
    """`solved` is what generalisation is judged by."""
    task = AlgorithmicTask(COPY)
    dataset = write(COPY.schema, METADATA, [COPY.of(BITS), COPY.of(BITS[:1])])
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=2)))
    outputs = 20 * (2 * tensors.targets["bits"] - 1)
    longer = int(tensors.lengths.argmax())
    outputs[longer, -1, 0] *= -1

    loss = task.loss(outputs, tensors)
    metrics = task.metrics(float(loss.total), float(loss.count), {k: float(v) for k, v in loss.sums.items()})
    assert metrics["solved"] == 0.5
    assert metrics["wrong_bits"] == 0.5
    assert metrics["loss"] == pytest.approx(10)


def test_per_bit_a_short_answer_weighs_as_much_as_a_long_one(write: Write):
    """By hand: answers of 3 and 1 vectors of 2 bits; one wrong bit at a logit of 12 costs 12 nats, a sixth or a half of
    them per bit. What is told of whole sequences stays what it was."""
    dataset = write(COPY.schema, METADATA, [COPY.of(BITS), COPY.of(BITS[:1])])
    whole, per_bit = (
        task_from_dataset(AlgorithmicConfig(loss_per=per), dataset.schema, dataset.metadata)
        for per in ("sequence", "bit")
    )
    tensors = whole.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=4)))  # two rows are filler
    sure = 12 * (2 * tensors.targets["bits"] - 1)
    for row, weight in ((int(tensors.lengths.argmax()), 1 / 6), (int((tensors.lengths == 3).nonzero()), 1 / 2)):
        outputs = sure.clone()
        outputs[row, int(tensors.lengths[row]) - 1, 0] *= -1
        outputs.requires_grad_()
        loss, summed = per_bit.loss(outputs, tensors), whole.loss(outputs, tensors)
        assert loss.total.item() == pytest.approx(12 * weight, rel=1e-3)
        assert summed.total.item() == pytest.approx(12, rel=1e-3)
        (slope,) = torch.autograd.grad(loss.total, outputs)
        assert slope[row].abs().max() == pytest.approx(weight, rel=1e-3)
        metrics = [
            task.metrics(one.total.item(), float(one.count), {k: float(v) for k, v in one.sums.items()})
            for task, one in ((per_bit, loss), (whole, summed))
        ]
        assert metrics[0]["loss"] == pytest.approx(6 * weight, rel=1e-3)
        assert {**metrics[0], "loss": 0} == {**metrics[1], "loss": 0}


def test_an_answer_is_followed_as_far_as_it_goes_well(write: Write):
    """Steps behind a mistake weigh less by what it cost, those before it and other sequences' as ever."""
    dataset = write(COPY.schema, METADATA, [COPY.of(BITS), COPY.of(BITS[:1])])
    task = task_from_dataset(AlgorithmicConfig(follow_nats=4.0), dataset.schema, dataset.metadata)
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=4)))
    outputs = 12 * (2 * tensors.targets["bits"] - 1)
    row, other = int(tensors.lengths.argmax()), int((tensors.lengths == 3).nonzero())
    first = int(tensors.targets["counted"][row].int().argmax())
    outputs[row, first, 0] *= -1
    outputs[row, first + 1, 0] *= -1
    outputs[other, 2, 0] *= -1
    outputs.requires_grad_()
    loss = task.loss(outputs, tensors)
    assert loss.total.item() == pytest.approx(12 + 12 * math.exp(-3) + 12, rel=1e-3)
    assert float(loss.sums["nats"]) == pytest.approx(36, rel=1e-3)
    (slope,) = torch.autograd.grad(loss.total, outputs)
    assert slope[row, first].abs().max() == slope[other, 2].abs().max() == pytest.approx(1, rel=1e-3)
    assert slope[row, first + 1].abs().max() == pytest.approx(math.exp(-3), rel=1e-3)


def test_bundles_of_before_the_settings_are_read():
    """Their descriptions have neither `loss_per` nor `follow_nats`."""
    task = task_from_description({"kind": "algorithmic", "problem": COPY.describe()})
    assert (task.loss_per, task.follow_nats) == ("sequence", None)
    described = AlgorithmicTask(COPY, "bit", 20.0).describe()
    assert task_from_description(json.loads(json.dumps(described))).describe() == described


def test_windows_are_refused(write: Write):
    """A window may hold an answer without its question."""
    task = AlgorithmicTask(COPY)
    dataset = write(COPY.schema, METADATA, [COPY.of(BITS)] * 3)
    with pytest.raises(ConfigError, match="Remove train.truncated_bptt"):
        task.tensors(next(one_epoch(dataset, mode="lanes", batch_sequences=2, window=4)))


def test_a_request_poses_the_problem_and_gets_the_bits():
    """The delimiter and the empty steps are the task's business, not the client's."""
    task = AlgorithmicTask(COPY)
    encoded = task.encode({"bits": BITS.tolist()})
    assert np.array_equal(encoded.inputs, COPY.of(BITS)["inputs"])

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
        ({}, "The instance has nothing. Send bits"),
        ({"bits": 1}, "'bits' is a number. Send a list of steps"),
    ],
)
def test_a_wrong_instance_is_told_what_to_send(instance, message):
    """A client sees nothing but this message."""
    with pytest.raises(RequestError, match=message):
        AlgorithmicTask(COPY).encode(instance)


def test_a_described_task_answers_as_the_one_that_was_trained(write: Write):
    """Serving has the description alone, after a way through JSON."""
    dataset = write(COPY.schema, METADATA, [COPY.of(BITS)])
    task = task_from_dataset(AlgorithmicConfig(), dataset.schema, dataset.metadata)
    rebuilt = task_from_description(json.loads(json.dumps(task.describe())))
    encoded, again = task.encode({"bits": BITS.tolist()}), rebuilt.encode({"bits": BITS.tolist()})
    output = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)

    assert np.array_equal(encoded.inputs, again.inputs)
    assert rebuilt.decode(output, again, {}) == task.decode(output, encoded, {})
    assert rebuilt.describe() == task.describe()


def test_the_models_sizes_come_from_the_data():
    """One input more than bits, for the delimiter."""
    model = AlgorithmicTask(COPY).build_model(ModelConfig(cell="ntm", hidden_size=8))

    outputs, _ = model(torch.zeros(1, 7, 3))
    assert outputs.shape == (1, 7, 2)


def test_another_dataset_is_refused():
    """Its columns would be read as bits."""
    schema = SequenceSchema((Column("inputs", "float32", width=2), Column("targets", "uint8", width=2)))
    with pytest.raises(
        SchemaError,
        match=r"does not have the columns of copy: inputs float32 \[T, 3\], targets uint8 \[T, 2\], counted",
    ):
        task_from_dataset(AlgorithmicConfig(), schema, METADATA)


def test_a_dataset_of_another_problem_is_refused():
    """The columns of two problems may be the same."""
    with pytest.raises(SchemaError, match="holds copy, and task.problem is priority_sort"):
        task_from_dataset(AlgorithmicConfig(problem="priority_sort"), COPY.schema, METADATA)
    with pytest.raises(SchemaError, match="holds no problem, and task.problem is copy"):
        task_from_dataset(AlgorithmicConfig(), COPY.schema, {})


def test_what_the_best_predictor_pays_stands_beside_what_was_paid(write: Write):
    """By hand: of 1 1 1 and 0 1 the optimal estimator pays 1 + log2(4 / 3) and 1 bit; a coin costs 2 and 1."""
    problem = DynamicNgrams(context=1)
    examples = [problem.of(np.array(bits)) for bits in ([1, 1, 1], [0, 1])]
    dataset = write(problem.schema, {"problem": problem.describe()}, examples)
    task = task_from_dataset(AlgorithmicConfig(problem="dynamic_ngrams"), dataset.schema, dataset.metadata)
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=4)))

    loss = task.loss(torch.zeros(*tensors.inputs.shape[:2], 1), tensors)
    metrics = task.metrics(float(loss.total), float(loss.count), {k: float(v) for k, v in loss.sums.items()})
    assert metrics["bits_per_sequence"] == pytest.approx((2 + 1) / 2)
    assert metrics["optimal_bits"] == pytest.approx((1 + np.log2(4 / 3) + 1) / 2)
    assert metrics["excess_bits"] == pytest.approx((1 - np.log2(4 / 3)) / 2)


def test_each_problem_is_posed_in_its_own_words():
    """A client of the sort sends priorities beside the vectors, and is told so."""
    task = AlgorithmicTask(PrioritySort(width=2))
    posed = {"bits": BITS.tolist(), "priorities": [0.1, 0.3, 0.2]}

    encoded = task.encode(posed)
    assert len(encoded.inputs) - encoded.context["answer_from"] == 2
    assert task.request_schema()["oneOf"] == [{"required": ["bits", "priorities"]}, {"required": ["inputs"]}]
    with pytest.raises(RequestError, match="The instance has bits. Send bits and priorities, such as"):
        task.encode({"bits": BITS.tolist()})
    with pytest.raises(RequestError, match="The instance has bits and inputs"):
        task.encode({"bits": BITS.tolist(), "inputs": [[0] * 4]})


def test_samples_show_bits_beside_answers(write: Write):
    """The report shows what the numbers mean."""
    task = AlgorithmicTask(COPY)
    tensors = task.tensors(
        next(one_epoch(write(COPY.schema, METADATA, [COPY.of(BITS)]), mode="buckets", batch_sequences=1))
    )

    (sample,) = task.samples(tensors.targets["bits"] - 0.5, tensors)
    assert sample["bits"] == sample["answer"] == BITS.tolist()
