"""recurra data: files in, a dataset out, and what is wrong with either."""

from __future__ import annotations

from pathlib import Path

import pytest

from recurra.data.dataset import Dataset

from .conftest import Command


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    file = tmp_path / "reviews.csv"
    rows = [f'"film number {n} is {"good" if n % 2 else "bad"}",{"yes" if n % 2 else "no"}' for n in range(40)]
    file.write_text("\n".join(["text,liked", *rows]) + "\n")
    return file


def test_a_csv_becomes_two_datasets_that_share_a_vocabulary(recurra: Command, reviews: Path, local_url: str) -> None:
    """A model that is evaluated on other token numbers than it learned looks broken, and nothing says why."""
    train, valid = f"{local_url}/train", f"{local_url}/valid"
    fields = ("--text", "text", "--label", "liked", "--vocabulary", "words")
    written = recurra("data", "write", reviews, train, *fields, "--holdout-url", valid, "--holdout", 0.25, "--json")
    assert written.code == 0
    counts = [one["sequences"] for one in written.json]
    assert sum(counts) == 40 and 3 <= counts[1] <= 20
    seen = [recurra("data", "inspect", url, "--json").json for url in (train, valid)]
    assert seen[0]["metadata"] == seen[1]["metadata"]
    assert seen[0]["metadata"]["labels"] == ["no", "yes"]
    assert [column["name"] for column in seen[0]["columns"]] == ["tokens", "label"]
    assert [seen[0][name] for name in ("shortest", "median", "p95", "longest")] == [5, 5, 5, 5]


def test_inspect_shows_sequences_as_a_reader_would(recurra: Command, reviews: Path, local_url: str) -> None:
    """Token numbers tell nobody whether the right column was read."""
    recurra("data", "write", reviews, local_url, "--text", "text", "--label", "liked")
    shown = recurra("data", "inspect", local_url, "-n", 1)
    assert "film number 0 is bad" in shown.out
    assert "0 (no)" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_inspect_draws_lengths_and_says_what_padding_costs(recurra: Command, tmp_path: Path, local_url: str) -> None:
    """Nobody chooses a batch mode by a number that nobody shows."""
    file = tmp_path / "texts.txt"
    file.write_text("\n".join("x" * (1 if n % 4 else 100) for n in range(64)))
    recurra("data", "write", file, local_url, "--text", "text")
    shown = [" ".join(line.split()) for line in recurra("data", "inspect", local_url).out.splitlines()]
    assert any(line.startswith("1-1 48 " + "█" * 40) for line in shown)
    assert any(line.endswith("16 " + "█" * 13 + "▍") for line in shown)
    waste = recurra("data", "inspect", local_url, "--json").json["waste"]
    shares = {(one["mode"], one["batch_sequences"]): one["share"] for one in waste}
    assert f"random {shares['random', 16]:.1%} {shares['random', 64]:.1%} {shares['random', 256]:.1%}" in shown
    assert shares["buckets", 16] < 0.01
    assert shares["random", 16] > 0.5


def test_a_second_write_needs_append(recurra: Command, reviews: Path, local_url: str) -> None:
    """The same command run twice would double the data."""
    command = ("data", "write", reviews, local_url, "--text", "text")
    assert recurra(*command).code == 0
    again = recurra(*command)
    assert again.code == 2 and "--append" in again.err
    assert recurra(*command, "--append").code == 0
    assert recurra("data", "inspect", local_url, "--json").json["sequences"] == 80


def test_subwords_are_written_with_at_most_the_size_that_is_asked_for(
    recurra: Command, reviews: Path, local_url: str
) -> None:
    """`--vocabulary subwords --max-size N`: the manifest holds the merges, so that serving cuts as training did."""
    fields = ("--text", "text", "--vocabulary", "subwords", "--max-size", "270")
    done = recurra("data", "write", reviews, local_url, *fields)
    assert done.code == 0, done.err
    vocabulary = Dataset.open(local_url).metadata["vocabulary"]
    assert vocabulary["kind"] == "subwords"
    assert 0 < len(vocabulary["merges"]) <= 270 - 259


def test_several_labels_and_a_target_become_columns(recurra: Command, local_url: str, tmp_path: Path) -> None:
    """`--labels` makes one number a class, `--target` keeps the text and learns its vocabulary from what was not held out."""
    file = tmp_path / "films.csv"
    file.write_text("plot,kinds,title\na dog runs,fun|sad,Der Hund\nrain,,Regen\n")
    fields = ("--text", "plot", "--labels", "kinds", "--target", "title", "--vocabulary", "characters")
    done = recurra("data", "write", file, local_url, *fields)
    assert done.code == 0, done.err
    dataset = Dataset.open(local_url)
    assert dataset.metadata["labels"] == ["fun", "sad"]
    assert [dataset[0]["label"].tolist(), dataset[1]["label"].tolist()] == [[1, 1], [0, 0]]
    assert dataset[1]["target"] == "Regen"
    assert set("Der HundRegen") == set(dataset.metadata["target_vocabulary"]["entries"])
    again = recurra("data", "write", file, f"{local_url}-2", "--like", local_url, *fields)
    assert again.code == 0, again.err
    assert Dataset.open(f"{local_url}-2").metadata == dataset.metadata


def test_like_takes_over_vocabulary_and_labels(recurra: Command, reviews: Path, local_url: str, tmp_path: Path) -> None:
    """Data that comes later has other words and perhaps not every class."""
    recurra("data", "write", reviews, f"{local_url}/a", "--text", "text", "--label", "liked", "--vocabulary", "words")
    later = tmp_path / "later.csv"
    later.write_text("text,liked\nan unheard film,yes\n")
    fields = ("--text", "text", "--label", "liked", "--like", f"{local_url}/a")
    assert recurra("data", "write", later, f"{local_url}/b", *fields).code == 0
    a, b = (recurra("data", "inspect", f"{local_url}/{name}", "--json").json for name in "ab")
    assert a["metadata"] == b["metadata"]


def test_an_altered_byte_is_named(recurra: Command, reviews: Path, local_url: str) -> None:
    """Disks and people alter bytes; Arrow would read them without a word."""
    recurra("data", "write", reviews, local_url, "--text", "text")
    assert recurra("data", "verify", local_url).code == 0
    (shard,) = Path(local_url.removeprefix("file://")).glob("shards/*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    outcome = recurra("data", "verify", local_url)
    assert outcome.code == 3
    assert shard.stem in outcome.err.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--text", "txt"), 3, "Did you mean 'text'"),
        ((), 2, "--text FIELD"),
        (("--text", "text", "--set", "frequency"), 2, "--set frequency=month"),
        (("--text", "text", "--holdout-url", "file:///tmp/x", "--holdout", "1.5"), 2, "above 0 and below 1"),
        (("--text", "text", "--vocabulary", "syllables"), 2, "characters"),
    ],
)
def test_wrong_arguments_say_what_to_type(
    recurra: Command, reviews: Path, local_url: str, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """Nobody reads the manual before the first try."""
    outcome = recurra("data", "write", reviews, local_url, *arguments)
    assert outcome.code == code
    assert words in " ".join(outcome.err.split())


def test_an_empty_address_and_a_missing_file_are_told_apart(recurra: Command, local_url: str) -> None:
    """One is the store's business (4), the other the data's (3)."""
    assert recurra("data", "inspect", local_url).code == 4
    assert recurra("data", "write", "/no/such.csv", local_url, "--text", "text").code == 3
