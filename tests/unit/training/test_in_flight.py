"""Checkpoints that are written while training goes on: what they hold, when they exist, and who hears of it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.data.batch import Batch
from recurra.errors import TrainingError, UnreachableError
from recurra.storage.url import open_store
from recurra.training import shares
from recurra.training.callbacks.base import Callback
from recurra.training.callbacks.checkpointing import SaveRegularly
from recurra.training.callbacks.evaluation import EvaluateRegularly
from recurra.training.callbacks.stopping import StopWhenDone
from recurra.training.checkpoint import Checkpoints
from recurra.training.host_copy import HostCopy
from recurra.training.in_flight import Saved
from recurra.training.loop import run_loop
from recurra.training.ranks import Ranks, SingleRank
from recurra.training.run import Origin
from recurra.training.snapshot import take_snapshot
from recurra.training.step import StepResult, Wishes
from recurra.training.trainer import Due, Trainer

from ...rendezvous import start_ranks
from .conftest import MakeRun
from .gated import GatedStore

ORIGIN = Origin("a", "cpu", None, None, pytest.fail)


def checkpoints_in(store: Any, ranks: Ranks | None = None) -> Checkpoints:
    return Checkpoints(store, ranks or SingleRank(), attempt="a", warn=pytest.fail)


def unreachable_from(step: int) -> Callable[[str], None]:
    """Fails every write of that step and of those behind it."""

    def check(key: str) -> None:
        if int(key.partition("/")[0]) >= step:
            raise UnreachableError("Gave up writing. Check AWS_ENDPOINT_URL.")

    return check


@pytest.fixture
def store(local_url: str) -> GatedStore:
    return GatedStore(open_store(local_url))


@pytest.fixture
def one_tensor_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first is held at the gate, all others have not even been turned into bytes."""
    monkeypatch.setattr(shares, "PIECE_BYTES", 1)


@pytest.mark.usefixtures("one_tensor_a_piece")
def test_what_is_saved_is_the_state_at_the_decision(store: GatedStore) -> None:
    """Training changes every weight, in place, before the first byte has been written."""
    tensors = {"weight": torch.arange(6.0), "half": torch.ones(3, dtype=torch.bfloat16), "count": torch.tensor(3)}
    own = {"lanes": torch.tensor([5, 6]), "state.h": torch.full((2, 2), 0.5)}
    wanted = {name: value.clone() for name, value in {**tensors, **own}.items()}
    checkpoints = checkpoints_in(store)
    store.open.clear()
    checkpoints.save(1, {}, tensors, own)
    for value in (*tensors.values(), *own.values()):
        value.add_(7)
    assert checkpoints.news() == [] and checkpoints.steps() == []
    store.open.set()
    checkpoints.wait()

    loaded = checkpoints.load(1)
    assert all(torch.equal({**loaded.tensors, **loaded.own[0]}[name], value) for name, value in wanted.items())
    assert [saved.step for saved in checkpoints.news()] == [1] and checkpoints.news() == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from([torch.float32, torch.int64]))))
def test_a_copy_is_exact_and_its_buffers_are_used_again(shapes: list[tuple[list[int], torch.dtype]]) -> None:
    """A large model's state must not be allocated anew for each checkpoint; one of another shape must not be cut."""
    copy = HostCopy()
    tensors = {str(i): torch.arange(64)[: torch.Size(s).numel()].reshape(s).to(d) for i, (s, d) in enumerate(shapes)}
    first = copy.take(tensors)
    second = copy.take({name: value + 1 for name, value in tensors.items()})
    turned = copy.take({name: value.unsqueeze(0).transpose(0, -1) for name, value in tensors.items()})

    assert all(second[name].data_ptr() == first[name].data_ptr() for name in tensors)
    assert all(torch.equal(first[name], value + 1) for name, value in tensors.items())
    assert all(torch.equal(turned[name].transpose(0, -1)[0], value) for name, value in tensors.items() if value.dim())
    assert all(value.is_contiguous() for value in turned.values())


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12))
def test_pieces_are_small_and_hold_everything(sizes: list[int]) -> None:
    """An interrupted upload sends one piece again, and two pieces at most are in memory besides the copy."""
    tensors = {str(number): torch.zeros(size, dtype=torch.uint8) for number, size in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "PIECE_BYTES", 30)
        pieces = list(shares.pieces_of(tensors))

    assert [name for piece in pieces for name in piece] == list(tensors)
    assert all(len(piece) == 1 or sum(value.nbytes for value in piece.values()) <= 30 for piece in pieces)


def test_a_share_of_several_pieces_is_loaded_as_one(store: GatedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Carried states of a rank belong together, whichever files they are in."""
    monkeypatch.setattr(shares, "PIECE_BYTES", 16)
    tensors = {f"t{number}": torch.full((3,), float(number)) for number in range(4)}
    own = {"lanes": torch.arange(2), "state.h": torch.ones(2, 3), "state.c": torch.zeros(2, 3)}
    checkpoints = checkpoints_in(store)
    checkpoints.save(1, {}, tensors, own)
    checkpoints.wait()

    loaded = checkpoints.load(1)
    assert loaded.tensors.keys() == tensors.keys() and [part.keys() for part in loaded.own] == [own.keys()]
    assert len(store.written) > 4


def test_one_is_in_flight_and_they_are_committed_in_order(store: GatedStore) -> None:
    """The second waits for the first, and says how long; no file of it is written before."""
    checkpoints = checkpoints_in(store)
    store.open.clear()
    checkpoints.save(1, {}, {"w": torch.zeros(2)}, {})  # it does not wait for the gate
    begun_s = time.perf_counter()
    store.open_in(0.6)
    second_s = checkpoints.save(2, {}, {"w": torch.ones(2)}, {})
    waited_s = time.perf_counter() - begun_s
    assert store.open.is_set()
    checkpoints.wait()

    assert 0.1 < second_s <= waited_s
    one, two = "00000001", "00000002"
    assert store.written == [
        f"{step}/{file}" for step in (one, two) for file in ("00000-a-000.safetensors", "manifest.json")
    ]
    news = checkpoints.news()
    assert [saved.step for saved in news] == [1, 2]
    assert news[0].durable_s > 0.5 and news[1].blocked_s == second_s <= news[1].durable_s


def test_whoever_asks_for_the_newest_waits_for_it(store: GatedStore) -> None:
    """A loss that jumps rewinds to the last checkpoint that was decided on, not to whichever the store had by then."""
    checkpoints = checkpoints_in(store)
    store.open_in(0.2)
    checkpoints.save(4, {"step": 4}, {"w": torch.zeros(2)}, {})

    loaded = checkpoints.load_newest()
    assert loaded is not None and loaded.step == 4


@pytest.mark.parametrize("moment", ["the files", "the manifest", "what comes before the commit"])
def test_an_error_on_the_way_leaves_the_one_before_the_newest(local_url: str, moment: str) -> None:
    """Whatever fails between copy and commit: the message names checkpoint and store, and the run learns of it."""

    def check(key: str) -> None:
        if key.startswith("00000002/") and ("manifest" in key) == (moment == "the manifest"):
            raise UnreachableError("Gave up writing. Check AWS_ENDPOINT_URL.")

    def fail() -> None:
        raise UnreachableError("Gave up writing the log. Check AWS_ENDPOINT_URL.")

    store = GatedStore(open_store(local_url), (lambda key: None) if moment.startswith("what") else check)
    checkpoints = checkpoints_in(store)
    checkpoints.save(1, {}, {"w": torch.zeros(2)}, {})
    before = fail if moment.startswith("what") else lambda: None
    checkpoints.save(2, {}, {"w": torch.ones(2)}, {}, before_commit=before)
    said = f"The checkpoint of step 2 was not committed to {local_url}: Gave up writing.*AWS_ENDPOINT_URL"
    with pytest.raises(UnreachableError, match=said):
        checkpoints.save(3, {}, {"w": torch.ones(2)}, {})

    assert checkpoints.steps() == [1] and [saved.step for saved in checkpoints.news()] == [1]
    loaded = checkpoints.load_newest()
    assert loaded is not None and torch.equal(loaded.tensors["w"], torch.zeros(2))


def test_what_fails_on_one_rank_is_raised_on_all(local_url: str, on_ranks: Callable[..., list[Any]]) -> None:
    """Otherwise the others would wait at their next collective call for one that has gone."""

    def work(ranks: Ranks) -> str:
        store = GatedStore(open_store(local_url), unreachable_from(2 if ranks.rank == 1 else 99))
        checkpoints = checkpoints_in(store, ranks)
        tensors = {"a": torch.zeros(2), "b": torch.zeros(2)}
        checkpoints.save(1, {}, tensors, {})
        checkpoints.save(2, {}, tensors, {})
        with pytest.raises(UnreachableError) as caught:
            checkpoints.wait()
        return str(caught.value)

    first, second, third = on_ranks(3, work)
    assert first == second == third and "The checkpoint of step 2" in first
    assert checkpoints_in(open_store(local_url)).steps() == [1]


class Witness(Callback):
    """Notes the order of events; `then` happens after the update of step `at`."""

    def __init__(self, at: int | None = None, then: Callable[[], None] = lambda: None) -> None:
        self.seen: list[tuple[str, int]] = []
        self._at = at
        self._then = then

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        self.seen.append(("stepped", trainer.progress.step))
        if trainer.progress.step == self._at:
            self._then()
        return Due()

    def copied(self, trainer: Trainer, blocked_s: float) -> None:
        self.seen.append(("copied", trainer.progress.step))

    def saved(self, trainer: Trainer, saved: Saved) -> None:
        self.seen.append(("saved", saved.step))

    def failed(self, trainer: Trainer, error: BaseException) -> None:
        self.seen.append(("failed", trainer.progress.step))


def loop_with(make_run: MakeRun, store: GatedStore, witness: Witness, **train: Any) -> Trainer:
    trainer = make_run(train=train).build(SingleRank(), ORIGIN)
    trainer.checkpoints = checkpoints_in(store)
    run_loop(trainer, [EvaluateRegularly(), StopWhenDone(), SaveRegularly(), witness])
    return trainer


def test_training_goes_on_while_the_store_writes_and_its_end_waits(make_run: MakeRun, store: GatedStore) -> None:
    """The store writes nothing before the fourth update: it is made all the same, and no checkpoint is lost."""
    witness = Witness(at=4, then=store.open.set)
    store.open.clear()
    trainer = loop_with(make_run, store, witness, steps=5, checkpoint_every={"steps": 2}, keep=9)

    assert witness.seen.index(("copied", 2)) < witness.seen.index(("stepped", 4)) < witness.seen.index(("saved", 2))
    assert [step for event, step in witness.seen if event == "saved"] == [2, 4, 5]
    assert trainer.checkpoints.steps() == [2, 4, 5]


def test_a_run_that_fails_waits_for_what_is_in_flight(make_run: MakeRun, store: GatedStore) -> None:
    """The next attempt goes on from there."""

    def fail() -> None:
        store.open_in(0.3)
        raise TrainingError("for a reason of its own")

    witness = Witness(at=4, then=fail)
    store.open.clear()
    with pytest.raises(TrainingError, match="for a reason of its own"):
        loop_with(make_run, store, witness, steps=9, checkpoint_every={"steps": 3})

    assert witness.seen[-3:] == [("stepped", 4), ("saved", 3), ("failed", 4)]
    assert checkpoints_in(store).steps() == [3]


def test_a_store_that_fails_ends_the_run_at_the_next_update(make_run: MakeRun, local_url: str) -> None:
    """Not a hundred updates later at the next checkpoint: they would all be lost."""
    store, witness = GatedStore(open_store(local_url), unreachable_from(3)), Witness()
    with pytest.raises(UnreachableError, match=r"The checkpoint of step 3 was not committed.*AWS_ENDPOINT_URL"):
        loop_with(make_run, store, witness, steps=500, checkpoint_every={"steps": 3})

    assert witness.seen[-1][1] < 100 and checkpoints_in(store).steps() == []


def test_the_newest_and_the_best_are_there_at_every_moment(make_run: MakeRun, local_url: str) -> None:
    """Old ones are deleted in the background: never the one that a killed run would go on from, nor the best."""
    inner, moments = open_store(local_url), []

    def look(key: str) -> None:
        moments.append((int(key.partition("/")[0]), checkpoints_in(inner).steps()))

    trainer = loop_with(make_run, GatedStore(inner, look), Witness(), steps=6, evaluate_every=1, keep=1)
    best = trainer.progress.best_step
    assert all(before[-1] < step for step, before in moments if before) and len(moments) >= 4
    assert checkpoints_in(inner).steps() == sorted({best, 6})


@pytest.mark.usefixtures("one_tensor_a_piece")
def test_the_state_is_that_of_its_step_whatever_follows(make_run: MakeRun, store: GatedStore) -> None:
    """A real model, with its optimizer, five updates further by the time its bytes are written."""
    trainer = make_run(train={"steps": 8}).build(SingleRank(), ORIGIN)
    trainer.checkpoints = checkpoints_in(store)
    batches = trainer.batches()
    trainer.step(next(batches), Wishes())
    wanted = {name: value.clone() for name, value in take_snapshot(trainer.update).items()}
    store.open.clear()
    trainer.save()
    for _ in range(5):
        trainer.step(next(batches), Wishes())
    store.open.set()
    trainer.checkpoints.wait()
    trainer.close()

    loaded = trainer.checkpoints.load(1)
    assert loaded.progress["step"] == 1 and loaded.tensors.keys() == wanted.keys()
    assert all(torch.equal(loaded.tensors[name], value) for name, value in wanted.items())
    assert any(not torch.equal(value, wanted[name]) for name, value in take_snapshot(trainer.update).items())


TWO_PROCESSES = """
import sys, time, torch
from recurra.errors import UnreachableError
from recurra.storage.url import open_store
from recurra.training.checkpoint import Checkpoints
from rendezvous import meet
ranks, (here, url) = meet()
rank = ranks.rank
sys.path.insert(0, here)
from gated import GatedStore

def check(key):
    if rank == 1 and key.startswith("00000002/"):
        raise UnreachableError("no answer")

torch.set_num_threads(1)
store = GatedStore(open_store(url), check)
checkpoints = Checkpoints(store, ranks, attempt="a", warn=print)
checkpoints.load_newest()

def train(updates):
    for number in range(updates):
        values = torch.tensor([float(rank), number])
        ranks.sum_in_place(values)
        assert values.tolist() == [1.0, 2.0 * number], values

def save(step):
    checkpoints.save(step, {}, {f"w{n}": torch.full((4,), float(step)) for n in range(6)}, {"lanes": torch.tensor([rank])})

if rank == 1:
    store.open.clear()          # this rank's store is slow: nobody's updates wait for it
save(1)
train(200)
print("in flight" if not checkpoints.news() else "durable", flush=True)
store.open.set()
checkpoints.wait()
print([saved.step for saved in checkpoints.news()], flush=True)
save(2)                         # this rank's store fails: both hear of it
train(200)
try:
    save(3)
except UnreachableError as exc:
    print("refused", "The checkpoint of step 2" in str(exc), flush=True)
save(4)
checkpoints.wait()
store.open.clear()              # killed in the middle
save(5)
train(5)
print("copied", flush=True)
time.sleep(60)
"""


@pytest.mark.timeout(300)
def test_two_processes_agree_while_they_train_and_a_kill_leaves_the_one_before(tmp_path: Any, local_url: str) -> None:
    """Real gloo, real SIGKILL: the threads' agreement meets no collective call of the loops, and nobody's half is a whole."""
    here = str(__file__).rpartition("/")[0]
    processes = start_ranks(2, ["-c", TWO_PROCESSES], tmp_path / "place", here, local_url)
    told: list[list[str]] = [[], []]

    def listen(rank: int) -> None:
        stdout = processes[rank].stdout
        assert stdout is not None
        for line in stdout:
            told[rank].append(line.strip())
            if line.strip() == "copied":
                return

    try:
        threads = [threading.Thread(target=listen, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()

    assert told == [["in flight", "[1]", "refused True", "copied"]] * 2
    checkpoints = checkpoints_in(open_store(local_url))
    loaded = checkpoints.load_newest()
    assert checkpoints.steps() == [1, 4] and loaded is not None and loaded.step == 4
    assert len(loaded.tensors) == 6 and all(value.eq(4).all() for value in loaded.tensors.values())
    assert [int(own["lanes"]) for own in loaded.own] == [0, 1]
