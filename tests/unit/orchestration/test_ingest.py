"""Ingest: each record lands in exactly one dataset, whatever the files are and whoever reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.data.dataset import Dataset
from recurra.data.records import Source
from recurra.data.sources import Field, Recipe
from recurra.errors import ConfigError, DataError, NotFoundError
from recurra.orchestration import ingest as room
from recurra.orchestration.ingest import IngestJob, ingest, ingest_on_ray, like

TEXT = Recipe((Field("tokens", ("text",), "text"), Field("label", ("kind",), "label")), vocabulary="words")


def silent(_: str) -> None:
    pass


def write_files(folder: Path, files: list[list[str]]) -> Path:
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for number, texts in enumerate(files):
        lines = [json.dumps({"text": text, "kind": text[0]}) for text in texts]
        (folder / f"{number:03}.jsonl").write_text("\n".join(lines))
    return folder


def texts_of(url: str) -> list[str]:
    dataset = Dataset.open(url)
    vocabulary = room.Vocabulary.from_json(dataset.metadata["vocabulary"])
    return [vocabulary.decode(example["tokens"]) for example in dataset]


words = st.lists(st.sampled_from(["alpha", "beta", "gamma"]), min_size=1, max_size=4).map(" ".join)
files = st.lists(st.lists(words, max_size=8), min_size=1, max_size=4).filter(lambda f: sum(map(len, f)) > 0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=files, share=st.floats(0.05, 0.95))
def test_every_record_is_in_one_of_the_two_datasets(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[str]], share: float
) -> None:
    """The law of this file: nothing is lost, nothing is doubled, order is kept, and a second run splits alike."""
    folder = tmp_path_factory.mktemp("ingest")
    source = Source(write_files(folder / "in", files))
    everything = [text for texts in files for text in texts]
    splits = []
    for attempt in ("a", "b"):
        urls = [f"file://{folder}/{attempt}/{name}" for name in ("train", "valid")]
        try:
            ingest(IngestJob(source, TEXT, urls[0], urls[1], share), silent)
        except DataError:
            return  # one side was left empty: nothing may be visible then
        splits.append([texts_of(url) for url in urls])
    assert splits[0] == splits[1]
    train, valid = splits[0]
    assert len(train) + len(valid) == len(everything)
    remaining = iter(everything)
    assert all(text in remaining for text in train)


def test_words_of_the_held_out_share_stay_unknown(tmp_path: Path) -> None:
    """An evaluation that knows the vocabulary of its own data flatters the model."""
    lines = [[f"common word{number}" for number in range(60)]]
    source = Source(write_files(tmp_path / "in", lines))
    recipe = Recipe((Field("tokens", ("text",), "text"),), vocabulary="words")
    ingest(IngestJob(source, recipe, f"file://{tmp_path}/t", f"file://{tmp_path}/v", 0.3), silent)
    assert "\ufffd" in " ".join(texts_of(f"file://{tmp_path}/v"))
    assert "\ufffd" not in " ".join(texts_of(f"file://{tmp_path}/t"))


def test_a_class_that_only_the_held_out_share_has_is_known(tmp_path: Path) -> None:
    """A rare class must not make the whole ingest fail."""
    source = Source(write_files(tmp_path / "in", [["x1"] * 30 + ["y1"]]))
    for share in (0.1, 0.5, 0.8):
        url = f"file://{tmp_path}/{share}"
        ingest(IngestJob(source, TEXT, f"{url}/t", f"{url}/v", share), silent)
        assert Dataset.open(f"{url}/t").metadata["labels"] == ["x", "y"]


def test_series_that_are_grouped_stay_whole(tmp_path: Path, local_url: str) -> None:
    """Half a series in training and half in evaluation would leak the future."""
    file = tmp_path / "sales.csv"
    rows = [f"{shop},{day * 10 + shop}" for day in range(6) for shop in range(20)]
    file.write_text("\n".join(["shop,sold", *rows]))
    recipe = Recipe((Field("values", ("sold",), "series"),), group_by="shop")
    ingest(IngestJob(Source(file), recipe, f"{local_url}/t", f"{local_url}/v", 0.4), silent)
    found = [list(example["values"]) for name in "tv" for example in Dataset.open(f"{local_url}/{name}")]
    assert sorted(found) == [[day * 10.0 + shop for day in range(6)] for shop in range(20)]


def test_a_bad_record_leaves_nothing_behind(tmp_path: Path, local_url: str) -> None:
    """Half a dataset that looks whole is worse than none."""
    folder = write_files(tmp_path / "in", [["good one"] * 50])
    (folder / "999.jsonl").write_text('{"text": "no kind here"}')
    with pytest.raises(DataError, match="999.jsonl"):
        ingest(IngestJob(Source(folder), TEXT, local_url), silent)
    with pytest.raises(NotFoundError):
        Dataset.open(local_url)


def test_an_existing_dataset_is_only_extended_on_purpose(tmp_path: Path, local_url: str) -> None:
    """The refusal comes before anything is read for long or written."""
    source = Source(write_files(tmp_path / "in", [["good one"]]))
    ingest(IngestJob(source, TEXT, local_url), silent)
    with pytest.raises(ConfigError, match="--append"):
        ingest(IngestJob(source, TEXT, local_url), silent)
    (manifest,) = ingest(IngestJob(source, TEXT, local_url, append=True), silent)
    assert (manifest.version, manifest.sequences) == (2, 2)


def test_like_takes_what_a_dataset_knows_and_keeps_what_is_given() -> None:
    """Own metadata wins, since it was typed."""
    metadata = {"vocabulary": {"kind": "bytes"}, "labels": ["a", "b"], "frequency": "month", "unit": "kg"}
    recipe = like(Recipe(TEXT.fields, metadata={"unit": "t"}), metadata)
    assert (recipe.labels, recipe.metadata) == (("a", "b"), {"frequency": "month", "unit": "t"})
    assert isinstance(recipe.vocabulary, room.Vocabulary) and recipe.vocabulary.kind == "bytes"


def test_grouped_records_are_not_read_on_a_cluster() -> None:
    """Their steps may be in any file, so one process has to see them all."""
    job = IngestJob(Source(Path("/x")), Recipe(TEXT.fields, group_by="shop"), "file:///d")
    with pytest.raises(ConfigError, match="Leave --address away"):
        ingest_on_ray(job, "127.0.0.1:1", silent)


def test_groups_of_files_keep_the_order_and_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's memory and a retry's cost depend on it."""
    monkeypatch.setattr(room, "GROUP_BYTES", 10)
    paths = [tmp_path / name for name in "abcde"]
    for path, size in zip(paths, (4, 6, 1, 30, 2), strict=True):
        path.write_bytes(b"x" * size)
    assert room._groups(paths) == [paths[:2], paths[2:3], paths[3:4], paths[4:]]


def test_a_share_outside_its_range_is_refused() -> None:
    """0 or 1 leave one dataset empty."""
    settings: dict[str, Any] = {"source": Source(Path("/x")), "recipe": TEXT, "url": "file:///d"}
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="above 0 and below 1"):
            IngestJob(**settings, holdout_share=share)
