"""Write the emerging entities of WNUT 2017 (Derczynski et al. 2017) as three datasets, OUT/train, OUT/dev and OUT/test."""

import argparse
import sys
from pathlib import Path

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import CharacterVocabulary, WordVocabulary
from recurra.data.words import build_character_vocabulary, build_word_vocabulary, spellings
from recurra.data.write import DatasetWriter
from recurra.errors import DataError, NotFoundError, RecurraError

SPLITS = ("train", "dev", "test")
CHARACTERS = 16
"""Of a word that are looked at: of a longer one the first and the last eight."""

Sentence = list[tuple[str, str]]
"""Words and their tags."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="directory of train.conll, dev.conll and test.conll")
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/entities or file:///tmp/entities")
    arguments = parser.parse_args()
    sentences = {split: read_conll(arguments.source / f"{split}.conll") for split in SPLITS}
    known = [[word for word, _ in sentence] for sentence in sentences["train"]]
    words = build_word_vocabulary(known, min_count=2)
    letters = build_character_vocabulary(known)
    tags = sorted({tag for split in SPLITS for sentence in sentences[split] for _, tag in sentence}, key=_tag_order)
    for split in SPLITS:
        write(f"{arguments.out.rstrip('/')}/{split}", sentences[split], words, letters, tags)


def read_conll(path: Path) -> list[Sentence]:
    """Sentences of a file that has a word, a tab and its tag on a line, and a blank line between sentences."""
    sentences: list[Sentence] = [[]]
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            sentences.append([])
            continue
        word, tab, tag = line.strip().rpartition("\t")
        if not tab or not word.strip():
            raise DataError(f"{path}:{number} is {line!r}. Put a word, a tab and a tag on each line.")
        sentences[-1].append((word.strip(), tag))
    return [sentence for sentence in sentences if sentence]


def _tag_order(tag: str) -> tuple[bool, str, str]:
    """`O` first, then the kinds of entities, `B-` before `I-`."""
    prefix, _, kind = tag.partition("-")
    return (tag != "O", kind, prefix)


def write(
    url: str, sentences: list[Sentence], words: WordVocabulary, letters: CharacterVocabulary, tags: list[str]
) -> None:
    schema = SequenceSchema(
        (
            Column("tokens", words.dtype),
            Column("characters", letters.dtype, width=CHARACTERS),
            Column("tags", "uint8"),
        )
    )
    metadata = {"vocabulary": words.to_json(), "character_vocabulary": letters.to_json(), "tags": tags}
    number = {tag: index for index, tag in enumerate(tags)}
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} sentences and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, schema, metadata) as writer:
            for sentence in sentences:
                own = [word for word, _ in sentence]
                writer.write(
                    {
                        "tokens": words.encode_words(own),
                        "characters": spellings(letters, own, CHARACTERS),
                        "tags": [number[tag] for _, tag in sentence],
                    }
                )
        print(f"{url}: {len(sentences)} sentences, {words.size} words, {len(tags)} tags")


if __name__ == "__main__":
    try:
        main()
    except (RecurraError, OSError) as exc:
        sys.exit(str(exc))
