"""Files become a committed dataset: in this process, or spread over a Ray cluster one group of files a task.

Memory stays bounded by the shards being filled, one for each task and address. Tasks put shards that nobody sees;
one commit at the end names them all in the order of the files, so the result does not depend on who was faster.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recurra.config.env import apply_ray_environment
from recurra.data.manifest import Manifest, Segment, commit, join_metadata, newest_version, read_manifest
from recurra.data.records import Record, Source, format_of, read_records
from recurra.data.sources import Recipe, Survey, read_examples, survey
from recurra.data.vocabulary import Vocabulary
from recurra.data.write import ShardWriter
from recurra.errors import ConfigError, DataError
from recurra.storage.url import open_store

GROUP_BYTES = 256 << 20
"""Input of one Ray task, unless a single file is larger."""
TELL_EVERY = 2000


@dataclass(frozen=True)
class IngestJob:
    """What to read and where to write it."""

    source: Source
    recipe: Recipe
    url: str
    holdout_url: str | None = None
    """A second dataset for evaluation, made of a share of the sequences; each goes to one of the two."""
    holdout_share: float = 0.1
    append: bool = False
    """Add to datasets that exist; otherwise they are left alone."""

    def __post_init__(self) -> None:
        if not 0 < self.holdout_share < 1:
            raise ConfigError(f"The holdout share is {self.holdout_share}. Set it above 0 and below 1, such as 0.1.")

    @property
    def urls(self) -> list[str]:
        return [self.url, *([self.holdout_url] if self.holdout_url else [])]


def like(recipe: Recipe, metadata: dict[str, Any]) -> Recipe:
    """The recipe with the vocabulary, labels and further metadata of a dataset that exists."""
    rest = {name: value for name, value in metadata.items() if name not in ("vocabulary", "labels")}
    vocabulary = Vocabulary.from_json(metadata["vocabulary"]) if "vocabulary" in metadata else recipe.vocabulary
    labels = tuple(metadata["labels"]) if "labels" in metadata else recipe.labels
    return replace(recipe, vocabulary=vocabulary, labels=labels, metadata={**rest, **recipe.metadata})


def ingest(job: IngestJob, progress: Callable[[str], None]) -> list[Manifest]:
    """Read and write in this process; one manifest for each address.

    Raises:
        ConfigError: A dataset is there already and `append` is off.
        DataError: A record cannot be used; names file, line and field. Nothing is committed.
    """
    known = _prepare(job)
    files = job.source.files()
    progress(f"reading {len(files)} file(s)")
    segments = _write_group(job, known, files, progress)
    return _commit(job, known, [segments])


def ingest_on_ray(job: IngestJob, address: str, progress: Callable[[str], None]) -> list[Manifest]:
    """As `ingest`, on a cluster whose nodes see the files under the same path.

    Raises:
        ConfigError: The recipe groups records, which takes all of them in one place.
    """
    if job.recipe.group_by is not None:
        raise ConfigError("Records that are grouped into sequences are read in one process. Leave --address away.")
    apply_ray_environment()
    import ray  # a second to import, and reading here needs none

    job = replace(job, source=replace(job.source, path=job.source.path.resolve()))  # workers have another folder
    known = _prepare(job)
    groups = _groups(job.source.files())
    with ray.init(address=address, log_to_driver=False, logging_level="ERROR"):
        write = ray.remote(num_cpus=1, max_retries=2)(_write_group)
        settings = ray.put((job, known))
        at_once = max(1, int(ray.cluster_resources().get("CPU", 1)))
        results: dict[int, list[dict[str, Any] | None]] = {}
        running: dict[Any, int] = {}
        waiting = list(enumerate(groups))
        while waiting or running:
            while waiting and len(running) < at_once:
                number, files = waiting.pop(0)
                running[write.remote(*ray.get(settings), files)] = number
            done, _ = ray.wait(list(running), timeout=5.0)
            for reference in done:
                results[running.pop(reference)] = _result(reference)
            progress(f"{len(results)} of {len(groups)} groups of files written")
    return _commit(job, known, [results[number] for number in range(len(groups))])


def _result(reference: Any) -> list[dict[str, Any] | None]:
    import ray

    try:
        return list(ray.get(reference))
    except ray.exceptions.RayTaskError as exc:
        raise exc.cause if isinstance(exc.cause, Exception) else exc from exc


def _prepare(job: IngestJob) -> Survey:
    """Look at the input, and at what is there already, before anything is written."""
    recipe = job.recipe
    chosen = _training_records if job.holdout_url and recipe.group_by is None else _records
    named = recipe.has("label") or recipe.has("labels")
    if chosen is _training_records and named and recipe.labels is None:
        # Over all records, with the vocabulary that costs nothing: a class that only the held-out share has is one, too.
        recipe = replace(recipe, labels=survey(lambda: _records(job), replace(recipe, vocabulary="bytes")).labels)
    if next(chosen(job), None) is None:
        raise DataError(f"{job.source.path} leaves no record for {job.url}. Give more input, or hold out less of it.")
    known = survey(lambda: chosen(job), recipe)
    for url in job.urls:
        store = open_store(url)
        if not newest_version(store):
            continue
        there = read_manifest(store)
        if not job.append:
            raise ConfigError(
                f"{url} holds a dataset already ({there.sequences} sequences, version {there.version}). "
                "Add --append to add to it, or write to another address."
            )
        join_metadata(url, there, known.schema, known.metadata(job.recipe))
    return known


def _write_group(
    job: IngestJob, known: Survey, files: Sequence[Path], progress: Callable[[str], None] | None = None
) -> list[dict[str, Any] | None]:
    """Write the shards of some files; a segment as JSON for each address, None where no sequence went."""
    metadata = known.metadata(job.recipe)
    writers = [ShardWriter(open_store(url), known.schema, metadata) for url in job.urls]
    for count, (key, example) in enumerate(_examples(job, known, files), 1):
        writers[-1 if _held_out(job, key) else 0].write(example)
        if progress is not None and count % TELL_EVERY == 0:
            progress(f"{count} sequences")
    return [writer.finish().to_json() if writer.sequences else None for writer in writers]


def _commit(job: IngestJob, known: Survey, groups: list[list[dict[str, Any] | None]]) -> list[Manifest]:
    per_url = [[group[index] for group in groups if group[index] is not None] for index in range(len(job.urls))]
    for url, found in zip(job.urls, per_url, strict=True):
        if not found:
            raise DataError(f"No sequence was left for {url}. Give more input, or another share for the holdout.")
    metadata = known.metadata(job.recipe)
    return [
        commit(open_store(url), known.schema, metadata, tuple(Segment.from_json(item) for item in found if item))
        for url, found in zip(job.urls, per_url, strict=True)
    ]


def _examples(job: IngestJob, known: Survey, files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Examples with a key that stays the same however the files are spread."""
    if job.recipe.group_by is not None:
        for number, example in enumerate(read_examples(_records(job), job.recipe, known)):
            yield str(number), example
        return
    for path in files:
        for number, example in enumerate(read_examples(_file_records(job, path), job.recipe, known)):
            yield _key(job, path, number), example


def _records(job: IngestJob) -> Iterator[Record]:
    for path in job.source.files():
        yield from _file_records(job, path)


def _training_records(job: IngestJob) -> Iterator[Record]:
    for path in job.source.files():
        for number, record in enumerate(_file_records(job, path)):
            if not _held_out(job, _key(job, path, number)):
                yield record


def _file_records(job: IngestJob, path: Path) -> Iterator[Record]:
    return read_records(path, job.source.format or format_of(path), job.source.per)


def _key(job: IngestJob, path: Path, number: int) -> str:
    root = job.source.path
    return f"{path.relative_to(root) if root.is_dir() else path.name}:{number}"


def _held_out(job: IngestJob, key: str) -> bool:
    return job.holdout_url is not None and zlib.crc32(key.encode()) < job.holdout_share * 2**32


def _groups(files: Sequence[Path]) -> list[list[Path]]:
    """Files in their order, cut where a group gets larger than `GROUP_BYTES`."""
    groups: list[list[Path]] = [[]]
    size = 0
    for path in files:
        if groups[-1] and size + path.stat().st_size > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += path.stat().st_size
    return groups
