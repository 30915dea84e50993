"""Write the source text of a Python installation as two datasets of bytes, OUT/train and OUT/valid."""

import argparse
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError, RecurraError

SCHEMA = SequenceSchema((Column("tokens", "uint8"),))
SKIPPED_DIRECTORIES = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
LARGEST_FILE = 200_000
VALIDATION_SHARE = 20
"""One file in so many is held out; which one depends on its path alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--source", type=Path, default=Path(sysconfig.get_path("stdlib")), help="a directory of .py files"
    )
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/python or file:///tmp/python")
    arguments = parser.parse_args()
    texts = dict(sources(arguments.source))
    for split in ("train", "valid"):
        chosen = [text for path, text in texts.items() if (bucket(path) == 0) == (split == "valid")]
        write(f"{arguments.out.rstrip('/')}/{split}", chosen)


def sources(root: Path) -> Iterator[tuple[str, str]]:
    """Relative path and text of every file that is source code: no tests, no large tables, nothing but UTF-8."""
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if SKIPPED_DIRECTORIES.intersection(path.parts) or not 0 < file.stat().st_size <= LARGEST_FILE:
            continue
        try:
            yield path.as_posix(), file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def bucket(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % VALIDATION_SHARE


def write(url: str, texts: list[str]) -> None:
    """Each file is a sequence that starts with bos."""
    vocabulary = ByteVocabulary()
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} files and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, SCHEMA, {"vocabulary": vocabulary.to_json()}) as writer:
            for text in texts:
                writer.write({"tokens": np.concatenate([[vocabulary.bos], vocabulary.encode(text)])})
        print(f"{url}: {len(texts)} files, {sum(len(text.encode()) for text in texts):,} bytes")


if __name__ == "__main__":
    try:
        main()
    except RecurraError as exc:
        sys.exit(str(exc))
