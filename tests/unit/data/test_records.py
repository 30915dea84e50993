from __future__ import annotations

import gzip
import json
import wave

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recurra.data.records import Source, format_of, read_records
from recurra.errors import ConfigError, DataError


def fields(path, **options):
    return [record for _, record in Source(path, **options).records()]


def write_wav(path, samples, width, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(samples)


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": [1, 2]}\n\n{"x": []}\n')

    assert list(read_records(path, "jsonl")) == [(f"{path}:1", {"x": [1, 2]}), (f"{path}:3", {"x": []})]


def test_packed_files_are_unpacked(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"x": 1}))

    assert fields(tmp_path / "a.jsonl.gz") == [{"x": 1}]


@pytest.mark.parametrize(("line", "message"), [("{", "a.jsonl:2 is not JSON"), ("[1]", "a.jsonl:2 is a list")])
def test_a_line_that_is_no_object_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n' + line)

    with pytest.raises(DataError, match=message):
        fields(tmp_path / "a.jsonl")


def test_csv_with_a_mark_quotes_and_line_breaks(tmp_path):
    """What spreadsheets write."""
    (tmp_path / "a.csv").write_bytes('\ufefftext,label\r\n"one, ""two""\nthree",pos\r\n'.encode())

    assert fields(tmp_path / "a.csv") == [{"text": 'one, "two"\nthree', "label": "pos"}]


def test_a_very_long_field_is_read(tmp_path):
    """The csv module gives up at 128 KiB by default."""
    (tmp_path / "a.csv").write_text("text\n" + "x" * 300_000)

    assert len(fields(tmp_path / "a.csv")[0]["text"]) == 300_000


@pytest.mark.parametrize("line", ["1", "1,2,3"])
def test_a_csv_line_of_another_width_is_named(tmp_path, line):
    (tmp_path / "a.csv").write_text(f"a,b\n{line}\n")

    with pytest.raises(DataError, match="a.csv:2 has not 2 fields"):
        fields(tmp_path / "a.csv")


def test_tsv(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tb\n1\t2, 3\n")

    assert fields(tmp_path / "a.tsv") == [{"a": "1", "b": "2, 3"}]


def test_parquet(tmp_path):
    pq.write_table(pa.table({"x": [[1, 2], [3]], "y": ["a", "b"]}), tmp_path / "a.parquet")

    assert fields(tmp_path / "a.parquet") == [{"x": [1, 2], "y": "a"}, {"x": [3], "y": "b"}]


def test_text_by_line_and_by_file(tmp_path):
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")

    assert [record["text"] for record in fields(tmp_path / "b.txt")] == ["one", "two"]
    assert [record["text"] for record in fields(tmp_path, per="file")] == ["one\n\ntwo\n"]
    assert fields(tmp_path / "b.txt")[0]["folder"] == tmp_path.name


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    for name in ("b/2.py", "a/1.py", "a/0.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    found = fields(tmp_path, suffix=".py", format="text", per="file")

    assert [record["text"] for record in found] == ["a/1.py", "b/2.py"]


def test_numpy_arrays(tmp_path):
    np.save(tmp_path / "one.npy", np.arange(3))
    np.save(tmp_path / "many.npy", np.zeros((2, 5, 4)))
    np.savez(tmp_path / "named.npz", x=np.zeros((2, 7)), y=np.array([1, 0]))

    assert [record["values"].shape for record in fields(tmp_path / "one.npy")] == [(3,)]
    assert [record["values"].shape for record in fields(tmp_path / "many.npy")] == [(5, 4)] * 2
    assert [(record["x"].shape, record["y"]) for record in fields(tmp_path / "named.npz")] == [((7,), 1), ((7,), 0)]


def test_numpy_arrays_of_unequal_length_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(2), y=np.zeros(3))

    with pytest.raises(DataError, match="arrays of unequal length"):
        fields(tmp_path / "a.npz")


def test_pickled_objects_are_not_loaded(tmp_path):
    """A pickle runs whatever its author wrote."""
    np.save(tmp_path / "a.npy", np.array([{}], object))

    with pytest.raises(DataError, match="no NumPy file without pickled objects"):
        fields(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("width", "data"),
    [
        (1, bytes([0, 128, 192])),
        (2, np.array([-(1 << 15), 0, 1 << 14], "<i2").tobytes()),
        (3, b"\x00\x00\x80\x00\x00\x00\x00\x00\x40"),
        (4, np.array([-(1 << 31), 0, 1 << 30], "<i4").tobytes()),
    ],
)
def test_wav_of_any_width_is_between_minus_one_and_one(tmp_path, width, data):
    write_wav(tmp_path / "a.wav", data, width)

    (record,) = fields(tmp_path / "a.wav")

    assert record["samples"].tolist() == [-1.0, 0.0, 0.5]
    assert record["samples"].dtype == np.float32
    assert record["rate"] == 8000


def test_wav_channels_are_columns(tmp_path):
    write_wav(tmp_path / "a.wav", np.zeros(6, "<i2").tobytes(), 2, channels=2)

    assert fields(tmp_path / "a.wav")[0]["samples"].shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.wav", "no PCM WAV"),
        ("a.parquet", "no Parquet"),
        ("a.npy", "no NumPy"),
        ("a.txt", "is not UTF-8"),
        ("a.csv.gz", "cannot be read"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_named(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"\xff\xfe nothing")

    with pytest.raises(DataError, match=f"{name}.*{message}"):
        fields(tmp_path / name)


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        fields(tmp_path / "nowhere")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no file that ends in .wav"):
        fields(tmp_path, format="wav")


def test_a_suffix_that_says_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a.xyz has no suffix that says what it is. Set the format: jsonl, csv"):
        format_of(tmp_path / "a.xyz")
