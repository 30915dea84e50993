"""Input files become records: mappings of field names to whatever the format holds, each with the place it came from."""

from __future__ import annotations

import csv
import gzip
import io
import json
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recurra.errors import ConfigError, DataError

Format = Literal["jsonl", "csv", "tsv", "parquet", "text", "numpy", "wav"]
Record = tuple[str, dict[str, Any]]
"""Where it came from, for errors (`file.csv:12`), and its fields."""

_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".npy": "numpy",
    ".npz": "numpy",
    ".wav": "wav",
}
_PARQUET_ROWS = 1024
_MAX_FIELD_BYTES = 1 << 30


@dataclass(frozen=True)
class Source:
    """Files of one format."""

    path: Path
    """A file, or a folder whose files of this format are read in the order of their names, at any depth."""
    format: Format | None = None
    """None = by the file's suffix; `.gz` behind it is fine for text formats."""
    per: Literal["line", "file"] = "line"
    """Plain text: what one sequence is. Blank lines are skipped."""
    suffix: str | None = None
    """Of a folder, only files with this ending, such as `.py`."""

    def files(self) -> list[Path]:
        """The files, sorted by path.

        Raises:
            DataError: There are none.
        """
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise DataError(f"{self.path} does not exist. Give the path of a file or a folder.")
        found = sorted(path for path in self.path.rglob("*") if path.is_file() and self._wanted(path))
        if not found:
            wanted = self.suffix or (self.format and _suffixes_of(self.format)) or ", ".join(_SUFFIXES)
            raise DataError(f"{self.path} holds no file that ends in {wanted}. Name another folder, or set the suffix.")
        return found

    def records(self) -> Iterator[Record]:
        """The records of all files."""
        for path in self.files():
            yield from read_records(path, self.format or format_of(path), self.per)

    def _wanted(self, path: Path) -> bool:
        if self.suffix is not None:
            return path.name.endswith(self.suffix)
        known = _SUFFIXES.get(_suffix(path))
        return known is not None if self.format is None else known == self.format


def format_of(path: Path) -> Format:
    """The format that a file's suffix stands for.

    Raises:
        ConfigError: It stands for none.
    """
    found = _SUFFIXES.get(_suffix(path))
    if found is None:
        raise ConfigError(f"{path.name} has no suffix that says what it is. Set the format: {', '.join(_READERS)}.")
    return found


def read_records(path: Path, kind: Format, per: Literal["line", "file"] = "line") -> Iterator[Record]:
    """The records of one file, read as it goes.

    Raises:
        DataError: The file is not what its format says; names file and line.
    """
    if kind == "text" and per == "file":
        return _read_whole(path)
    return _READERS[kind](path)


def _read_whole(path: Path) -> Iterator[Record]:
    with _text(path) as file:
        yield str(path), {"text": file.read(), **_origin(path)}


def _read_lines(path: Path) -> Iterator[Record]:
    with _text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", {"text": line.rstrip("\r\n"), **_origin(path)}


def _read_jsonl(path: Path) -> Iterator[Record]:
    with _text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as exc:
                raise DataError(f"{path}:{number} is not JSON: {exc}. Put one object on each line.") from exc
            if not isinstance(value, dict):
                raise DataError(f"{path}:{number} is a {type(value).__name__}. Put one JSON object on each line.")
            yield f"{path}:{number}", value


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Record]:
    csv.field_size_limit(_MAX_FIELD_BYTES)
    with _text(path, newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    wanted = len(rows.fieldnames or ())
                    raise DataError(f"{path}:{rows.line_num} has not {wanted} fields as the header has. Mend the line.")
                yield f"{path}:{rows.line_num}", dict(row)
        except csv.Error as exc:
            raise DataError(f"{path}:{rows.line_num} is no line of CSV: {exc}.") from exc


def _read_tsv(path: Path) -> Iterator[Record]:
    return _read_csv(path, "\t")


def _read_parquet(path: Path) -> Iterator[Record]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield f"{path} row {number}", row
                    number += 1
    except (pa.ArrowInvalid, OSError) as exc:
        raise DataError(f"{path} is no Parquet file: {exc}.") from exc


def _read_numpy(path: Path) -> Iterator[Record]:
    """`.npy`: [T] is one sequence, [N, T, ...] are N, in the field `values`; `.npz`: arrays of N rows, by their names."""
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
    except (ValueError, OSError) as exc:
        raise DataError(f"{path} is no NumPy file without pickled objects: {exc}.") from exc
    if isinstance(loaded, np.ndarray):
        rows = loaded[None] if loaded.ndim == 1 else loaded
        for number, row in enumerate(rows):
            yield f"{path} row {number}", {"values": row, **_origin(path)}
        return
    with loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise DataError(f"{path} holds arrays of unequal length: {counts}. Give each one row per sequence.")
    for number in range(next(iter(counts.values()))):
        yield f"{path} row {number}", {name: _plain(array[number]) for name, array in arrays.items()}


def read_wav(content: bytes) -> tuple[NDArray[np.float32], int]:
    """Samples in [-1, 1), [T] or [T, channels], and samples a second, of the bytes of a WAV file.

    Raises:
        DataError: It is no PCM WAV file.
    """
    try:
        with wave.open(io.BytesIO(content), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            samples = _pcm(file.readframes(count), width)
    except (wave.Error, EOFError) as exc:
        raise DataError(f"it is no PCM WAV file ({exc}). Convert it to 16-bit PCM") from exc
    return samples if channels == 1 else samples.reshape(-1, channels), rate


def _read_wav(path: Path) -> Iterator[Record]:
    """`samples`: float32 in [-1, 1), [T] or [T, channels]; `rate`: samples a second."""
    try:
        samples, rate = read_wav(path.read_bytes())
    except DataError as exc:
        raise DataError(f"{path}: {exc}.") from exc
    yield str(path), {"samples": samples, "rate": rate, **_origin(path)}


def _pcm(data: bytes, width: int) -> NDArray[np.float32]:
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    raw = np.frombuffer(data, np.uint8).reshape(-1, width)
    wide = np.zeros((len(raw), 4), np.uint8)
    wide[:, 4 - width :] = raw
    whole: NDArray[np.int32] = wide.view("<i4")[:, 0]
    return whole.astype(np.float32) / np.float32(1 << 31)


_READERS: dict[Format, Callable[[Path], Iterator[Record]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "text": _read_lines,
    "numpy": _read_numpy,
    "wav": _read_wav,
}


@contextmanager
def _text(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    """The file as UTF-8 text, unpacked, without a byte order mark."""
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 - closed just below
        with opened as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as exc:
        raise DataError(f"{path} is not UTF-8: {exc.reason} at byte {exc.start}. Convert it to UTF-8.") from exc
    except (OSError, EOFError) as exc:
        raise DataError(f"{path} cannot be read: {exc}.") from exc


def _origin(path: Path) -> dict[str, str]:
    """Fields that say where a sequence came from; the folder is often its class."""
    return {"path": str(path), "folder": path.parent.name}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()


def _suffixes_of(kind: Format) -> str:
    return ", ".join(suffix for suffix, known in _SUFFIXES.items() if known == kind)
