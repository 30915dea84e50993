"""recurra evaluate, export: what can be done with a published model besides serving it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from recurra.cli.options import DEFAULT_REGISTRY, Json, Registry
from recurra.cli.output import Progress, emit_json, note, number, say, show_facts, show_table, size

if TYPE_CHECKING:
    from recurra.registry.loading import LoadedModel

PANEL = "Models"
Reference = Annotated[
    str, typer.Argument(metavar="MODEL[@VERSION]", help="name, name@alias or name@digest.", show_default=False)
]


class Target(StrEnum):
    """Formats of an exported graph."""

    onnx = "onnx"
    torch_export = "torch-export"


class Which(StrEnum):
    """Which graphs are exported."""

    step = "step"
    sequence = "sequence"
    both = "both"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(evaluate)
    app.command(rich_help_panel=PANEL)(export)


def evaluate(
    model: Reference,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Address of a dataset.", show_default=False)],
    registry: Registry = DEFAULT_REGISTRY,
    samples: Annotated[int, typer.Option("--samples", help="Bootstrap samples; 0 = no intervals.")] = 1000,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the intervals.")] = 0.95,
    json: Json = False,
) -> None:
    """Measure a published model on a dataset: the task's metrics, with confidence intervals over sequences.

    Example: recurra evaluate sentiment@production s3://recurra/reviews/test
    """
    from recurra.data.dataset import Dataset
    from recurra.training.scoring import Resampling, score

    loaded, progress = _load(model, registry), Progress()

    def tell(done: int, total: int) -> None:
        if done == total or done // 1000 > tell_at[0]:
            tell_at[0] = done // 1000
            progress(f"{done} of {total} sequences")

    tell_at = [0]
    found = score(loaded, Dataset.open(data), Resampling(samples, confidence), tell=tell)
    if json:
        emit_json({"model": model, "bundle": loaded.bundle.digest, "data": data, **found.to_json()})
        return
    rows = [
        (name, number(one.value), *(("-", "-") if one.low is None else (number(one.low), number(one.high or 0.0))))
        for name, one in sorted(found.metrics.items())
    ]
    show_table(("metric", "value", "from", "to"), rows, right=("value", "from", "to"))
    intervals = (
        f"; {confidence:.0%} intervals of {samples} bootstrap samples" if samples and found.sequences > 1 else ""
    )
    note(f"{found.sequences} sequences, {number(found.tokens)} steps, data {found.digest[:12]}{intervals}")


def export(
    model: Reference,
    to: Annotated[Target, typer.Option("--to", help="Format of the graphs.")] = Target.onnx,
    graph: Annotated[Which, typer.Option("--graph", help="One time step, many, or both.")] = Which.both,
    output: Annotated[
        Path | None, typer.Option("--output", "-O", help="Directory; default: the model's name.", show_default=False)
    ] = None,
    registry: Registry = DEFAULT_REGISTRY,
    json: Json = False,
) -> None:
    """Write a published model as graphs for other runtimes, checked against the original.

    ONNX needs the packages of recurra[export]; what was written is run with onnxruntime before the command ends.

    Example: recurra export sentiment@production --to onnx -O sentiment-onnx
    """
    from recurra.registry.export import export as export_graphs

    loaded = _load(model, registry)
    kinds: list[Literal["step", "sequence"]] = ["step", "sequence"]
    made = export_graphs(loaded, to.value, [kind for kind in kinds if graph in (Which.both, kind)])
    files = made.write(loaded, output or Path(model.partition("@")[0]))
    if json:
        graphs = [
            {"kind": one.kind, "file": str(file), "bytes": len(one.data), "largest_difference": one.largest_difference}
            for one, file in zip(made.graphs, files, strict=False)
        ]
        emit_json({"bundle": loaded.bundle.digest, "format": to.value, "graphs": graphs, "refused": made.refused})
        return
    for one, file in zip(made.graphs, files, strict=False):
        say(f"{file}: {size(len(one.data))}, differs from the model by at most {one.largest_difference:.1e}")
    show_facts([("how to call them", files[-1])])
    for kind, reason in made.refused.items():
        note(f"No {kind} graph: {reason}", style="yellow")


def _load(model: str, registry: str) -> LoadedModel:
    from recurra.orchestration.local_platform import join_local_platform
    from recurra.registry.loading import load_model
    from recurra.registry.registry import Registry as RegistryStore

    join_local_platform()
    return load_model(RegistryStore(registry), model)
