import subprocess
import sys

import pytest
import torch

from recurra.training.config import TrainConfig
from recurra.training.optim import Optimizer, learning_rate

REFERENCES = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.9, foreach=True),
    "centered": lambda groups: torch.optim.RMSprop(
        groups, lr=0.01, momentum=0.9, alpha=0.95, eps=1e-4, centered=True, foreach=True
    ),
    "steady": lambda groups: torch.optim.AdamW(groups, lr=0.01, eps=1e-3, fused=True),
}
SETTINGS = {
    "centered": {"optimizer": "rmsprop", "rmsprop": {"decay": 0.95, "centered": True}, "epsilon": 1e-4},
    "steady": {"optimizer": "adamw", "epsilon": 1e-3},
}


@pytest.fixture
def parameters():
    generator = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(7, 5, generator=generator), "bias": torch.randn(5, generator=generator)}


@pytest.mark.parametrize("kind", REFERENCES)
def test_updates_are_those_of_torchs_own_optimizer(parameters, kind):
    """Its functions are called without its classes: the numbers must be the same, decay of matrices alone included."""
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in parameters.items()}
    gradients = {name: torch.zeros_like(value) for name, value in parameters.items()}
    settings = SETTINGS.get(kind, {"optimizer": kind})
    ours = Optimizer(parameters, gradients, TrainConfig.model_validate({"steps": 1, **settings}), l2=0.1)
    reference = REFERENCES[kind](
        [{"params": [theirs["weight"]], "weight_decay": 0.1}, {"params": [theirs["bias"]], "weight_decay": 0.0}]
    )
    for _ in range(12):
        for name, value in gradients.items():
            value.normal_(generator=torch.Generator().manual_seed(1))
            theirs[name].grad = value.clone()
        ours.step(0.01)
        reference.step()

    assert all(torch.equal(parameters[name], theirs[name]) for name in parameters)


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_with_a_larger_epsilon_updates_fade_with_the_gradient(parameters, kind):
    """Else the last updates of a solved task are as large as the first ones, and now and then undo the solution."""
    sizes = {}
    for epsilon in (1e-8, 1e-3):
        weight = {"weight": torch.zeros(4, 4)}
        gradient = {"weight": torch.full((4, 4), 1e-6)}
        optimizer = Optimizer(weight, gradient, TrainConfig(steps=1, optimizer=kind, epsilon=epsilon), l2=0.0)
        for _ in range(50):
            optimizer.step(1e-3)
        sizes[epsilon] = float(weight["weight"].abs().max())

    assert sizes[1e-3] < 0.01 * sizes[1e-8]


def test_a_step_does_not_import_the_compiler():
    """torch's Optimizer does, which costs each worker 2.4 s of CPU at each start."""
    code = (
        "import sys, torch; from recurra.training.optim import Optimizer; from recurra.training.config import TrainConfig;"
        "p = {'w': torch.ones(2, 2)}; Optimizer(p, {'w': torch.ones(2, 2)}, TrainConfig(steps=1), l2=0.0).step(0.1);"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ({"kind": "constant", "warmup": 4}, [0.25, 0.5, 0.75, 1, 1]),
        ("linear", [0.9, 0.8, 0.7, 0.6, 0.5]),
        ({"kind": "linear", "warmup": 2, "floor": 0.2}, [0.5, 1, 0.9, 0.8, 0.7]),
        ("cosine", [0.97553, 0.90451, 0.79389, 0.65451, 0.5]),
        ("one_cycle", [0.28, 0.76, 1, 0.95048, 0.81174]),
    ],
)
def test_the_learning_rate_is_a_pinned_function_of_the_step(schedule, rates):
    """A resume computes it anew: what a run saw must not depend on the version of the code that looks at it."""
    config = TrainConfig(steps=10, learning_rate=1.0, schedule=schedule)

    assert [learning_rate(config, step, 10) for step in range(1, 6)] == pytest.approx(rates, abs=1e-5)


@pytest.mark.parametrize("kind", ["linear", "cosine", "one_cycle"])
def test_the_learning_rate_ends_at_its_floor(kind):
    """The last update is the smallest one."""
    config = TrainConfig(steps=50, learning_rate=2.0, schedule={"kind": kind, "warmup": 5, "floor": 0.1})
    rates = [learning_rate(config, step, 50) for step in range(1, 51)]

    assert rates[-1] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) == 4
