"""A state must come out of a slot, a row of bytes or a snapshot exactly as it went in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.models.state import StateSpec, StateTensor, put_rows, select_rows
from recurra.serving.slots import Slots, StateLayout

SPECS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 4), max_size=3).map(tuple),
        st.sampled_from(["float32", "float64", "bfloat16", "int64", "bool"]),
    ),
    min_size=1,
    max_size=5,
).map(lambda items: StateSpec(tuple(StateTensor(f"t{i}", shape, dtype) for i, (shape, dtype) in enumerate(items))))


def random_state(spec: StateSpec, batch: int) -> dict[str, torch.Tensor]:
    return {t.name: (torch.randn(batch, *t.shape) * 9).to(getattr(torch, t.dtype)) for t in spec.tensors}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name])


@settings(deadline=None)
@given(spec=SPECS, batch=st.integers(1, 5))
def test_any_state_survives_as_bytes(spec, batch):
    """Law: pack and unpack are exact for every shape and dtype, so no model needs a case of its own."""
    layout = StateLayout(spec)
    state = random_state(spec, batch)
    rows = layout.pack(state)

    assert {len(row) for row in rows} == {layout.row_bytes}
    assert_same(layout.unpack(rows), state)


@settings(deadline=None)
@given(spec=SPECS)
def test_any_state_survives_in_slots(spec):
    """Load, rows and the state itself agree with one another, and leave the other slots alone."""
    layout = StateLayout(spec)
    slots = Slots(layout, random_state(spec, 1), 6, torch.device("cpu"))
    state = random_state(spec, 3)
    index = torch.tensor([4, 0, 2])
    put_rows(slots.state, index, state)

    assert_same(select_rows(slots.state, index), state)
    assert slots.rows([4, 0, 2]) == layout.pack(state)
    assert slots.rows([1, 3, slots.blank]) == [slots.initial] * 3
    slots.load([1], slots.rows([4]))
    assert slots.rows([1]) == slots.rows([4])


def test_slots_are_counted():
    """The load of a replica is the share of slots that are taken."""
    spec = StateSpec((StateTensor("h", (2,)),))
    slots = Slots(StateLayout(spec), random_state(spec, 1), 3, torch.device("cpu"))
    taken = [slots.take() for _ in range(3)]

    assert sorted(taken) == [0, 1, 2] and slots.free == 0 and slots.used == 3
    slots.release([taken[1]])
    assert slots.take() == taken[1]
    with pytest.raises(IndexError):
        slots.take()
