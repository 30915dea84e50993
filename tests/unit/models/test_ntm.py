import numpy as np
import pytest
import torch
from torch.testing import assert_close

from recurra.models import addressing
from recurra.models.backend import use_backend
from recurra.models.config import ModelConfig, NtmConfig
from recurra.models.ntm import NtmCore


def ntm_core(**changes):
    """A small core with random weights, in float64."""
    torch.manual_seed(1)
    ntm = NtmConfig(**{"memory_rows": 5, "memory_width": 3, **changes})
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=4, ntm=ntm), 2).double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.normal_(std=0.7)
    return core


def test_a_step_goes_in_the_documented_order():
    """Peers differ in whether heads see each other's writes; ours all see the memory as the last step left it."""
    core = ntm_core(read_heads=2)
    x_BD, state = torch.randn(1, 2, dtype=torch.float64), core.zero_state(1)

    y_BH, after = core.step(x_BD, state)

    known = {"h": state["controller.h"], "c": state["controller.c"]}
    h_BH, _ = core.controller.advance(core.controller.project(x_BD), state["reads"].flatten(1), known)
    p = addressing.split_parameters(core.heads(h_BH), core.config)
    last_BJN = torch.cat([state["read_weights"], state["write_weights"]], 1)
    w = addressing.address(p, last_BJN, state["memory"])[0].detach().numpy()
    old = state["memory"][0].detach().numpy().T
    reads = w[:2] @ old
    new = old * (1 - np.outer(w[2], p.erase_BWM[0, 0].detach())) + np.outer(w[2], p.add_BWM[0, 0].detach())
    np.testing.assert_allclose(after["memory"][0].detach().T, new, atol=1e-12)
    np.testing.assert_allclose(y_BH[0].detach(), [*h_BH[0].detach(), *reads.ravel()], atol=1e-12)
    np.testing.assert_allclose(after["reads"][0].detach(), reads, atol=1e-12)


def test_a_trace_is_what_forward_did():
    """Reports draw the weightings; they must be those of the real run, and say nothing about padding."""
    core = ntm_core(read_heads=2, write_heads=2)
    x_BTD, lengths_B = torch.randn(2, 5, 2, dtype=torch.float64), torch.tensor([5, 3])

    y_BTH, state, traced = core.trace(x_BTD, None, lengths_B)

    assert {name: tuple(value.shape) for name, value in traced.items()} == {
        "read_weights": (2, 5, 2, 5),
        "write_weights": (2, 5, 2, 5),
        "reads": (2, 5, 2, 3),
        "add": (2, 5, 2, 3),
        "erase": (2, 5, 2, 3),
    }
    assert_close(y_BTH, core(x_BTD, None, lengths_B)[0])
    assert_close(traced["read_weights"][1, 2], state["read_weights"][1])
    assert_close(traced["write_weights"][:, :3].sum(3), torch.ones(2, 3, 2, dtype=torch.float64))
    assert not traced["reads"][1, 3:].any()


@pytest.mark.parametrize(("start", "learned"), [("constant", False), ("learned", True), ("random", False)])
def test_the_memory_starts_as_asked(start, learned):
    """Collier and Beel 2018: the start decides how fast it converges, so it is a setting and not an accident."""
    torch.manual_seed(0)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=2, ntm=NtmConfig(memory_start=start)), 1)

    memory_MN = core.zero_state(3)["memory"][2]

    assert ("start_memory" in dict(core.named_parameters())) == learned
    assert bool((memory_MN == 1e-6).all()) == (start == "constant")


def test_heads_start_on_one_row():
    """Equal weights on equal rows give every row the same gradient for ever."""
    weights_RN = NtmCore(ModelConfig(cell="ntm", hidden_size=2), 1).zero_state(1)["read_weights"][0]

    assert (weights_RN.argmax(1) == 0).all()
    assert weights_RN.max() > 0.5
    assert_close(weights_RN.sum(1), torch.ones(1))


def test_two_thousand_steps_of_large_inputs_stay_finite():
    """A session may live for days."""
    torch.manual_seed(0)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=4, ntm=NtmConfig(memory_rows=4, memory_width=2)), 1)
    x_BTD = torch.randn(1, 2_000, 1) * 100

    with torch.inference_mode():
        y_BTH, state = core(x_BTD)

    assert y_BTH.isfinite().all()
    assert all(value.isfinite().all() for value in state.values())


def test_a_tape_is_written_row_by_row_and_read_behind_what_is_seen_again():
    """Recall is there before training, so that training has a slope to go down and no plateau to guess on."""
    torch.manual_seed(0)
    ntm = NtmConfig(memory_start="random", heads_start="tape", controller="feed_forward", read_heads=2)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=256, ntm=ntm), 8)
    x_BTD = torch.randint(0, 2, (20, 11, 8)).float()
    seen_B = torch.arange(20) % 8 + 1
    x_BTD[:, 10] = x_BTD[torch.arange(20), seen_B]

    with torch.no_grad():
        _, _, traced = core.trace(x_BTD)

    assert (traced["write_weights"][:, :, 0].argmax(2) == torch.arange(1, 12)).all()
    found_B = traced["read_weights"][:, 10, 0, :10].argmax(1)
    assert (found_B == seen_B + 2).float().mean() > 0.6


@pytest.mark.parametrize("kind", ["auto", "eager"])
def test_paired_heads_of_one_gate_work_on_the_same_rows(kind):
    """What was found can be taken away in the same step; with `heads_start: queue` nothing but the keys has been drawn."""
    ntm = NtmConfig(heads_start="queue", paired_heads=True, controller="feed_forward")
    torch.manual_seed(0)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=16, ntm=ntm), 8)
    gates = core.heads_rows[80:82]  # behind two keys, an add and an erase vector
    with torch.no_grad():
        core.heads.weight[gates] = 0
    x_BTD = torch.randint(0, 2, (2, 9, 8)).float()

    with use_backend(kind), torch.no_grad():
        _, state = core(x_BTD)

    assert_close(state["read_weights"], state["write_weights"])
    assert state["read_weights"].max(2).values.min() > 0.1
