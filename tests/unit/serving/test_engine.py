"""The law of serving: batched or alone, the same answer; and nobody who leaves or fails takes others along."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.serving.conftest import CELLS, VOCABULARY, alone, continued, small_model, tokens_of

from recurra.errors import RequestError
from recurra.serving.engine import Engine, deliver
from recurra.serving.sampling import Sampling
from recurra.serving.work import Result, Token

GREEDY = Sampling(max_tokens=12, temperature=0.0)


@pytest.mark.parametrize("cell", CELLS)
def test_sequences_of_a_batch_get_the_outputs_they_would_get_alone(bench, cell):
    """Padding, buckets and neighbours must not show in an answer."""
    model = small_model(cell)
    b = bench(model)
    rng = np.random.default_rng(0)
    sequences = [b.sequence(tokens_of(rng, length), outputs="all") for length in (1, 2, 3, 7, 7, 20, 33, 64)]

    b.add(*sequences)
    b.run()

    for sequence in sequences:
        np.testing.assert_allclose(b.result(sequence).outputs, alone(model, sequence.inputs), atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_cut_into_chunks_gets_the_outputs_of_the_whole(bench, cell):
    """Long inputs are read in chunks so that they cannot hold up the others; the state carries over."""
    model = small_model(cell)
    b = bench(model, chunk_steps=5)
    sequence = b.sequence(tokens_of(np.random.default_rng(1), 23), outputs="all")

    b.add(sequence)
    ticks = b.run()

    assert ticks == 5
    np.testing.assert_allclose(b.result(sequence).outputs, alone(model, sequence.inputs), atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("neighbours", [0, 1, 3, 7, 63])
def test_greedy_tokens_do_not_depend_on_the_neighbours(bench, cell, neighbours):
    """A session must say the same whether the server is idle or full."""
    model = small_model(cell)
    rng = np.random.default_rng(2)
    prompt = tokens_of(rng, 6)
    b = bench(model)
    sequence = b.sequence(prompt, outputs="none", sampling=GREEDY)
    others = [b.sequence(tokens_of(rng, 1 + i % 9), outputs="none", sampling=GREEDY) for i in range(neighbours)]

    b.add(*others[: neighbours // 2], sequence, *others[neighbours // 2 :])
    b.run()

    assert b.result(sequence).tokens == continued(model, prompt, 12)


@pytest.mark.parametrize("cell", CELLS)
def test_deterministic_mode_gives_the_same_bits_in_any_batch(bench, cell):
    """With products of one fixed shape, not even the last bit depends on who else is there."""
    model = small_model(cell)
    rng = np.random.default_rng(3)
    inputs = tokens_of(rng, 9)
    seen = []
    for neighbours in (0, 1, 3, 7, 63):
        b = bench(model, deterministic=True)
        sequence = b.sequence(inputs, outputs="all", keep="end")
        others = [b.sequence(tokens_of(rng, 1 + i % 9)) for i in range(neighbours)]
        b.add(*others[: neighbours // 2], sequence, *others[neighbours // 2 :])
        b.run()
        seen.append((b.result(sequence).outputs.tobytes(), b.result(sequence).state))

    assert all(one == seen[0] for one in seen)


@settings(max_examples=10, deadline=None)
@given(plan=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=12))
def test_whoever_comes_whenever_gets_the_tokens_of_running_alone(plan):
    """Law: sequences join at any tick, in any number, beyond the slots too, and each gets its own answer."""
    from tests.unit.serving.conftest import Bench, Clock, EngineMetrics, Metrics, ServeConfig

    model = small_model("gru")
    clock, metrics = Clock(), Metrics(model="m")
    engine = Engine(model, ServeConfig(slots=3, chunk_steps=8), EngineMetrics(metrics), deliver, None, clock)
    b = Bench(engine, clock, metrics)
    rng = np.random.default_rng(4)
    expected = {}
    for length, count, ticks in plan:
        prompt = tokens_of(rng, length)
        if count:
            sequence = b.sequence(prompt, outputs="none", sampling=Sampling(max_tokens=count, temperature=0.0))
            expected[sequence] = continued(model, prompt, count)
        else:
            sequence = b.sequence(prompt)
            expected[sequence] = alone(model, prompt)[-1]
        b.add(sequence)
        b.run(ticks)
    b.run()

    for sequence, wanted in expected.items():
        result = b.result(sequence)
        if sequence.sampling is None:
            np.testing.assert_allclose(result.outputs, wanted, atol=1e-5)
        else:
            assert result.tokens == wanted
    assert engine.idle and engine.load.busy == 0


@pytest.mark.parametrize("cell", CELLS)
def test_a_kept_state_goes_on_where_it_was(bench, cell):
    """A session is a state that comes back later, alone or among others: cut anywhere, the outputs are the same."""
    model = small_model(cell)
    inputs = tokens_of(np.random.default_rng(5), 15)
    whole = alone(model, inputs)
    b = bench(model)
    first = b.sequence(inputs[:6], outputs="all", keep="end")
    b.add(first)
    b.run()

    second = b.sequence(inputs[6:7], outputs="all", keep="end", state=b.result(first).state)
    b.add(second, b.sequence(inputs[:3]))
    b.run()
    third = b.sequence(inputs[7:], outputs="all", state=b.result(second).state)
    b.add(third, b.sequence(inputs[:9]))
    b.run()

    parts = [b.result(sequence).outputs for sequence in (first, second, third)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_the_state_after_generation_awaits_the_last_token(bench):
    """The last token was sampled, not read: the next request of a session reads it first."""
    model = small_model()
    prompt = tokens_of(np.random.default_rng(6), 5)
    wanted = continued(model, prompt, 8)
    b = bench(model)
    first = b.sequence(prompt, outputs="none", sampling=Sampling(max_tokens=3, temperature=0.0), keep="end")
    b.add(first)
    b.run()
    result = b.result(first)
    second = b.sequence(
        result.pending, outputs="none", sampling=Sampling(max_tokens=5, temperature=0.0), state=result.state
    )
    b.add(second)
    b.run()

    assert result.pending == [wanted[2]]
    assert result.tokens + b.result(second).tokens == wanted


def test_the_state_after_the_inputs_knows_nothing_of_what_was_generated(bench):
    """Suggestions while somebody types must not become part of what was typed."""
    model = small_model()
    prompt = tokens_of(np.random.default_rng(6), 5)
    b = bench(model)
    plain = b.sequence(prompt, outputs="none", keep="end")
    suggesting = b.sequence(prompt, outputs="none", sampling=GREEDY, keep="inputs")
    b.add(plain)
    b.run()
    b.add(suggesting)
    b.run()

    assert b.result(suggesting).state == b.result(plain).state


def test_features_step_and_encode_alike(bench):
    """A sensor session gets one row at a time; a predict request gets them all."""
    model = small_model("lstm", features=4)
    rows = np.random.default_rng(7).normal(size=(6, 4)).astype(np.float32)
    b = bench(model)
    whole = b.sequence(rows, outputs="all")
    b.add(whole)
    b.run()
    state, outputs = None, []
    for row in rows:
        one = b.sequence(row[None], outputs="last", keep="end", state=state)
        b.add(one)
        b.run()
        state = b.result(one).state
        outputs.append(b.result(one).outputs)

    np.testing.assert_allclose(np.stack(outputs), b.result(whole).outputs, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"bidirectional": True}, {"attention": "additive"}, {"pooling": "mean"}, {"pooling": "max"}, {}]
)
def test_one_output_for_a_whole_sequence(bench, options):
    """Classifiers of every build are served whole, long ones in chunks where the model can be cut."""
    model = small_model("lstm", per_step=False, **options)
    rng = np.random.default_rng(8)
    b = bench(model, chunk_steps=10)
    sequences = [b.sequence(tokens_of(rng, length)) for length in (1, 4, 9, 10, 11, 37)]
    b.add(*sequences)
    b.run()

    for sequence in sequences:
        np.testing.assert_allclose(b.result(sequence).outputs, alone(model, sequence.inputs), atol=1e-5)


def test_a_new_sequence_joins_at_the_next_tick(bench):
    """Short requests do not wait for the end of long ones: that is what step batching is for."""
    b = bench(small_model())
    long = b.sequence([1, 2], outputs="none", sampling=Sampling(max_tokens=200, temperature=0.0))
    b.add(long)
    b.run(20)
    short = b.sequence([3, 4], outputs="none", sampling=Sampling(max_tokens=2, temperature=0.0))
    b.add(short)
    b.run(3)

    assert b.result(short).finish == "length"
    assert b.heard[long] == []


def test_a_cancelled_sequence_frees_its_slot_within_one_tick_and_hears_nothing(bench):
    """A client that went away must not hold a slot, and its future is cancelled: nobody may set it."""
    b = bench(small_model(), slots=1)
    gone = b.sequence([1, 2], outputs="none", sampling=Sampling(max_tokens=1000), stream=True)
    waits = b.sequence([3, 4], outputs="none", sampling=Sampling(max_tokens=1))
    b.add(gone, waits)
    b.run(5)
    heard = len(b.heard[gone])
    b.engine.cancel([gone])
    b.run(1)

    assert b.result(waits).finish == "length"
    assert len(b.heard[gone]) == heard
    assert b.engine.load.busy == 0
    assert 'recurra_request_success_total{finished_reason="cancelled",model="m"} 1' in b.metrics.exposition()


@pytest.mark.parametrize("where", ["inbox", "waiting", "encode"])
def test_a_sequence_may_be_cancelled_wherever_it_waits(bench, where):
    """The client can leave before the first step, too."""
    b = bench(small_model(), slots=1, chunk_steps=2)
    blocker = b.sequence([1, 2], outputs="none", sampling=Sampling(max_tokens=5))
    gone = b.sequence(
        [1, 2, 3, 4, 5, 6], outputs="none", sampling=Sampling(max_tokens=5) if where == "waiting" else None
    )
    if where == "waiting":
        b.add(blocker)
    b.add(gone)
    if where != "inbox":
        b.run(1)
    b.engine.cancel([gone])
    b.run()

    assert b.heard[gone] == []
    assert b.engine.idle and b.engine.load.busy == 0


def test_a_sequence_past_its_deadline_gets_504_and_leaves(bench):
    """Work that nobody waits for any more must not be done."""
    b = bench(small_model())
    late = b.sequence([1, 2], outputs="none", sampling=Sampling(max_tokens=1000), deadline_s=b.clock() + 5)
    b.add(late)
    b.run(3)
    b.clock.now += 5
    b.run(1)

    (error,) = b.heard[late]
    assert (error.status, error.code) == (504, "deadline_exceeded")
    assert b.engine.idle


def test_one_sequence_that_breaks_the_model_fails_alone(bench):
    """A bad request must not take the batch with it."""
    model = small_model()
    b = bench(model)
    rng = np.random.default_rng(9)
    good = [b.sequence(tokens_of(rng, 4)) for _ in range(3)]
    bad = b.sequence([1, VOCABULARY + 5, 2, 2])  # the task lets no such token through: only a bug could
    b.add(good[0], bad, *good[1:])
    b.run()

    (error,) = b.heard[bad]
    assert (error.status, error.code) == (500, "model_failed")
    for sequence in good:
        np.testing.assert_allclose(b.result(sequence).outputs, alone(model, sequence.inputs)[-1], atol=1e-5)


def test_one_stepping_sequence_that_breaks_the_model_fails_alone(bench):
    """The same, in a tick: slots are written after the step, so the others can step again."""
    model = small_model()
    b = bench(model)
    prompt = tokens_of(np.random.default_rng(10), 4)
    good = b.sequence(prompt, outputs="none", sampling=GREEDY)
    b.add(good)
    b.run(3)
    bad = b.sequence([VOCABULARY + 5], keep="end")
    b.add(bad)
    b.run()

    assert b.heard[bad][0].code == "model_failed"
    assert b.result(good).tokens == continued(model, prompt, 12)


def test_an_output_that_is_not_finite_fails_its_own_sequence(bench):
    """NaN is no JSON and no answer; the neighbours are fine."""
    model = small_model("lstm", features=2)
    b = bench(model)
    bad = b.sequence(np.array([[0.0, np.nan]]))
    good = b.sequence(np.array([[0.0, 1.0]]))
    b.add(bad, good)
    b.run()

    assert b.heard[bad][0].code == "output_not_finite"
    assert b.result(good).outputs.shape == (VOCABULARY,)


def test_a_full_queue_refuses_the_whole_request(bench):
    """Beyond the queue, waiting helps nobody: the client hears so at once, with a time to come back."""
    b = bench(small_model(), max_queue=3)
    b.add(b.sequence([1]), b.sequence([2]))
    b.engine.check_room()

    with pytest.raises(RequestError, match="serve.max_queue is 3"):
        b.engine.check_room(2)
    with pytest.raises(RequestError, match="serve.max_queue is 3") as refused:
        b.add(b.sequence([1]), b.sequence([2]))
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    assert refused.value.retry_after_s >= 1


def test_a_draining_engine_refuses_the_new_and_finishes_the_old(bench):
    """A replica that leaves must not drop what it took."""
    b = bench(small_model())
    old = b.sequence([1, 2], outputs="none", sampling=GREEDY)
    b.add(old)
    b.engine.drain()

    with pytest.raises(RequestError, match="another one takes it") as refused:
        b.add(b.sequence([1]))
    b.run()
    assert refused.value.status == 503
    assert len(b.result(old).tokens) == 12


def test_a_streaming_sequence_hears_each_token_once(bench):
    """What was streamed is what the result holds."""
    b = bench(small_model())
    sequence = b.sequence([1, 2], outputs="none", sampling=GREEDY, stream=True)
    b.add(sequence)
    b.run()

    *tokens, result = b.heard[sequence]
    assert [event.token for event in tokens if isinstance(event, Token)] == result.tokens
    assert len(result.tokens) == 12


def test_a_stop_token_and_a_stop_text_end_the_sequence(bench):
    """Both say why; the stop token is not part of the answer."""
    model = small_model()
    prompt = np.array([1, 2, 3])
    wanted = continued(model, prompt, 12)
    b = bench(model, text_of=lambda tokens: "".join(chr(97 + token) for token in tokens))
    stop_at = next(i for i in range(1, 12) if wanted[i] not in wanted[:i])
    by_token = Sampling(max_tokens=12, temperature=0.0, stop_tokens=frozenset({wanted[stop_at]}))
    by_text = Sampling(max_tokens=12, temperature=0.0, stop=(chr(97 + wanted[stop_at]),))
    one = b.sequence(prompt, outputs="none", sampling=by_token)
    two = b.sequence(prompt, outputs="none", sampling=by_text)
    b.add(one, two)
    b.run()

    assert (b.result(one).finish, b.result(one).tokens) == ("stop", wanted[:stop_at])
    assert (b.result(two).finish, b.result(two).tokens) == ("stop", wanted[: stop_at + 1])


def test_log_probabilities_belong_to_the_chosen_tokens(bench):
    """They are natural logarithms of the model's own distribution, whatever the temperature."""
    model = small_model()
    prompt = np.array([1, 2, 3])
    b = bench(model)
    sequence = b.sequence(prompt, outputs="none", sampling=Sampling(max_tokens=1, temperature=0.0, logprobs=2))
    b.add(sequence)
    b.run()

    expected = torch.log_softmax(torch.from_numpy(alone(model, prompt)[-1]).double(), 0)
    ((value, best),) = b.result(sequence).logprobs
    assert value == pytest.approx(float(expected.max()))
    assert list(best) == expected.topk(2).indices.tolist()


def test_the_thread_serves_from_other_threads_and_stops():
    """The engine as a replica runs it: waits without a timer, wakes at once, ends when told."""
    from tests.unit.serving.conftest import EngineMetrics, Metrics, Sequence, ServeConfig

    model = small_model()
    metrics = EngineMetrics(Metrics(model="m"))
    engine = Engine(model, ServeConfig(slots=8), metrics, deliver)
    engine.start()
    done = threading.Semaphore(0)
    results = []

    def listener(_, event):
        results.append(event)
        done.release()

    def client(seed):
        rng = np.random.default_rng(seed)
        for _ in range(10):
            engine.submit([Sequence(tokens_of(rng, 5), listener)])

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in clients:
        thread.start()
    assert all(done.acquire(timeout=60) for _ in range(40))
    assert engine.healthy
    engine.stop()
    assert not engine.healthy
    assert all(isinstance(result, Result) for result in results)


def test_a_stopped_engine_answers_those_it_leaves():
    """No listener may wait for ever."""
    from tests.unit.serving.conftest import EngineMetrics, Metrics, Sequence, ServeConfig

    engine = Engine(small_model(), ServeConfig(slots=2), EngineMetrics(Metrics(model="m")), deliver)
    engine.start()
    heard = []
    forever = Sampling(max_tokens=10**9)
    engine.submit(
        [Sequence(np.array([1]), lambda _, e: heard.append(e), outputs="none", sampling=forever) for _ in range(5)]
    )
    while engine.load.busy < 2:
        time.sleep(0.001)
    engine.stop()

    assert [error.status for error in heard] == [503] * 5
