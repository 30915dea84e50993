"""recurra data write, inspect, verify."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recurra.cli.options import Address, Json
from recurra.cli.output import Bar, Progress, draw_bar, emit_json, say, show_facts, show_table, size

if TYPE_CHECKING:
    from recurra.data.inspect import DatasetReport
    from recurra.data.manifest import Manifest
    from recurra.data.sources import Field, Recipe, Role
    from recurra.orchestration.ingest import IngestJob

data_app = typer.Typer(help="Write, look at and check datasets.", no_args_is_help=True)

Url = Annotated[str, typer.Argument(metavar="URL", help="s3://bucket/prefix or file:///dir.", show_default=False)]


class FileFormat(StrEnum):
    """What an input file is."""

    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    text = "text"
    numpy = "numpy"
    wav = "wav"


class VocabularyKind(StrEnum):
    """What a token is."""

    bytes = "bytes"
    characters = "characters"
    subwords = "subwords"
    words = "words"


class Per(StrEnum):
    """What one sequence of plain text is."""

    line = "line"
    file = "file"


def register(app: typer.Typer) -> None:
    app.add_typer(data_app, name="data", rich_help_panel="Data")


def _field(name: str, help: str) -> Any:
    return typer.Option(name, metavar="FIELD", help=help, rich_help_panel="What the fields are", show_default=False)


def _reading(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="How the input is read", **settings)


@data_app.command()
def write(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A file, or a folder of files.", show_default=False)],
    url: Url,
    text: Annotated[str | None, _field("--text", "Text; becomes the column 'tokens'.")] = None,
    tokens: Annotated[str | None, _field("--tokens", "List of token ids; becomes 'tokens'.")] = None,
    series: Annotated[
        list[str], _field("--series", "Numbers, one a step; becomes 'values'. Repeat it for a vector a step.")
    ] = [],  # noqa: B006
    label: Annotated[str | None, _field("--label", "Name of a class; becomes 'label'.")] = None,
    labels: Annotated[
        str | None, _field("--labels", "Names of several classes, a list or a|b; becomes 'label', one number a class.")
    ] = None,
    target: Annotated[
        str | None, _field("--target", "Text to be said, a translation or transcript; becomes 'target'.")
    ] = None,
    keep: Annotated[list[str], _field("--keep", "Text kept as it is, once a sequence; repeatable.")] = [],  # noqa: B006
    group_by: Annotated[str | None, _field("--group-by", "Records of one value are the steps of a sequence.")] = None,
    format: Annotated[FileFormat | None, _reading(help="Default: by the suffix.", show_default=False)] = None,
    per: Annotated[Per, _reading(help="Plain text: one sequence a line, or a file.")] = Per.line,
    suffix: Annotated[str | None, _reading(help="Of a folder, only files that end so: .py", show_default=False)] = None,
    frame: Annotated[
        int | None, _reading(help="So many numbers of a series make one step.", show_default=False)
    ] = None,
    vocabulary: Annotated[VocabularyKind, _reading(help="What a token of text is.")] = VocabularyKind.bytes,
    min_count: Annotated[int, _reading(help="Rarer words or characters become <unk>.")] = 1,
    max_size: Annotated[int | None, _reading(help="Tokens in the vocabulary at most.", show_default=False)] = None,
    set_: Annotated[
        list[str],
        _reading("--set", metavar="KEY=VALUE", help="Metadata, such as frequency=month.", show_default=False),
    ] = [],  # noqa: B006
    like: Annotated[
        str | None, _reading(metavar="URL", help="Take vocabulary and labels of this dataset.", show_default=False)
    ] = None,
    holdout_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Write a share there, for evaluation.", show_default=False)
    ] = None,
    holdout: Annotated[float, typer.Option(help="That share, chosen by a hash of the record's place.")] = 0.1,
    append: Annotated[bool, typer.Option("--append", help="Add to a dataset that exists.")] = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Turn files into a committed dataset (JSONL, CSV, TSV, Parquet, text, NumPy, WAV).

    Nothing is visible at URL before the last byte is written, and nothing after an error.
    With --address the files are read by the cluster's nodes, in parallel.

    Example: recurra data write reviews.csv s3://recurra/reviews --text text --label stars --vocabulary words
    """
    from recurra.data.dataset import Dataset
    from recurra.data.records import Source
    from recurra.data.sources import Recipe
    from recurra.orchestration import ingest
    from recurra.orchestration.local_platform import join_local_platform

    join_local_platform()
    once: dict[Role, str | None] = {"label": label, "labels": labels, "target": target}
    fields = _fields(text=text, tokens=tokens, series=series, once=once, keep=keep, frame=frame)
    recipe: Recipe = Recipe(
        fields=fields,
        vocabulary=vocabulary.value,
        min_count=min_count,
        max_size=max_size,
        group_by=group_by,
        metadata=_metadata(set_),
    )
    if like is not None:
        recipe = ingest.like(recipe, Dataset.open(like).metadata)
    reading = Source(source, format.value if format else None, per.value, suffix)
    written = _ingest(ingest.IngestJob(reading, recipe, url, holdout_url, holdout, append), address)
    if json:
        emit_json(written)
        return
    columns = ("dataset", "sequences", "steps", "size", "version")
    rows = [(one["url"], one["sequences"], one["steps"], size(one["bytes"]), one["version"]) for one in written]
    show_table(columns, rows, right=columns[1:])
    say(f"Next: recurra data inspect {url}", style="green")


def _ingest(job: IngestJob, address: str | None) -> list[dict[str, Any]]:
    """Here, or on a cluster's nodes; facts about each dataset that was written."""
    from recurra.orchestration.address import need_cluster
    from recurra.orchestration.ingest import ingest, ingest_on_ray

    progress = Progress()
    if address is None:
        manifests = ingest(job, progress)
    else:
        manifests = ingest_on_ray(job, need_cluster(address).driver_address(), progress)
    return [_describe(at, manifest) for at, manifest in zip(job.urls, manifests, strict=True)]


@data_app.command()
def inspect(
    url: Url,
    examples: Annotated[int, typer.Option("--examples", "-n", help="Sequences to show.")] = 2,
    json: Json = False,
) -> None:
    """Show what a dataset holds: columns, sizes, lengths, what padding would cost, a few sequences.

    Example: recurra data inspect s3://recurra/reviews -n 5
    """
    from dataclasses import asdict

    from recurra.data.dataset import Dataset
    from recurra.data.inspect import inspect_dataset
    from recurra.orchestration.local_platform import join_local_platform

    join_local_platform()
    dataset = Dataset.open(url)
    report = inspect_dataset(dataset, examples)
    if json:
        emit_json({**asdict(report), "metadata": dataset.metadata})
    else:
        _show(report)


def _show(report: DatasetReport) -> None:
    show_facts(
        (
            ("dataset", f"{report.url}, version {report.version}, digest {report.digest[:12]}"),
            ("sequences", f"{report.sequences:,}"),
            ("steps", f"{report.steps:,}"),
            ("size", f"{size(report.bytes)} in {report.shards} shard(s), {report.blocks} block(s)"),
            *report.metadata.items(),
        )
    )
    say()
    types = [(c["name"], c["dtype"] + (f"[{c['width']}]" if c["width"] else ""), c["axis"]) for c in report.columns]
    show_table(("column", "type", "one a"), [(n, t, axis.replace("time", "step")) for n, t, axis in types])
    say(f"\nLengths: {report.shortest} to {report.longest} steps, median {report.median}, 95 % up to {report.p95}")
    most = max(bar.count for bar in report.lengths)
    rows = [(f"{b.low}-{b.high}", f"{b.count:,}", draw_bar(b.count / most)) for b in report.lengths]
    show_table(("steps", "sequences", ""), rows, right=("steps", "sequences"))
    say("\nPadding, as a share of all computed steps")
    sizes = sorted({one.batch_sequences for one in report.waste})
    shares = {(one.mode, one.batch_sequences): f"{one.share:.1%}" for one in report.waste}
    modes = dict.fromkeys(one.mode for one in report.waste)
    titles = [f"batch {count}" for count in sizes]
    table = [(mode, *(shares[mode, count] for count in sizes)) for mode in modes]
    show_table(("batches", *titles), table, right=titles)
    for row in report.samples:
        say()
        show_facts(row.items())


@data_app.command()
def verify(url: Url, json: Json = False) -> None:
    """Read every byte of a dataset again and compare the hashes; exit code 3 names what differs.

    Example: recurra data verify s3://recurra/reviews
    """
    from recurra.data.dataset import Dataset
    from recurra.orchestration.local_platform import join_local_platform

    join_local_platform()
    dataset = Dataset.open(url)
    with Bar("verifying") as bar:
        dataset.verify(bar)
    if json:
        emit_json({**_describe(dataset.url, dataset.manifest), "intact": True})
    else:
        say(f"{url} is intact: {dataset.sequences} sequences, digest {dataset.digest[:12]}.", style="green")


def _fields(
    *,
    text: str | None,
    tokens: str | None,
    series: list[str],
    once: dict[Role, str | None],
    keep: list[str],
    frame: int | None,
) -> tuple[Field, ...]:
    from recurra.data.sources import Field
    from recurra.errors import ConfigError

    made = [Field("tokens", (text,), "text")] if text else []
    if tokens:
        made.append(Field("tokens", (tokens,), "tokens"))
    if series:
        made.append(Field("values", tuple(series), "series", frame=frame))
    if not made:
        raise ConfigError("Nothing says what a step is. Give --text FIELD, --tokens FIELD or --series FIELD.")
    names = {"labels": "label"}
    made += [Field(names.get(role, role), (field,), role) for role, field in once.items() if field]
    return (*made, *(Field(name, (name,), "string") for name in keep))


def _metadata(items: list[str]) -> dict[str, Any]:
    import yaml

    from recurra.errors import ConfigError

    values = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {item} has no '='. Write it as --set frequency=month.")
        values[key] = yaml.safe_load(value)
    return values


def _describe(url: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "url": url,
        "version": manifest.version,
        "digest": str(manifest.digest),
        "sequences": manifest.sequences,
        "steps": manifest.steps,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
    }
