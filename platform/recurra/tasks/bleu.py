"""BLEU (Papineni et al. 2002) by sacrebleu, as counts that add up over batches and workers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from recurra.errors import ConfigError

ORDERS = (1, 2, 3, 4)


class Bleu:
    """Corpus BLEU.

    Args:
        tokenize: sacrebleu's word for how texts are cut: `13a` for running text, `none` for text that is cut already.

    Raises:
        ConfigError: sacrebleu is not installed.
    """

    def __init__(self, tokenize: str) -> None:
        self._metric: Any = _library().BLEU(tokenize=tokenize, force=True)

    def counts(self, answers: Sequence[str], references: Sequence[str]) -> dict[str, int]:
        """Of some sentences: n-grams that are right, n-grams in all, lengths."""
        found = self._metric.corpus_score(list(answers), [list(references)]) if answers else None
        counts = {"length": 0, "reference_length": 0} if found is None else _lengths(found)
        for order in ORDERS:
            counts[f"right.{order}"] = 0 if found is None else int(found.counts[order - 1])
            counts[f"ngrams.{order}"] = 0 if found is None else int(found.totals[order - 1])
        return counts

    def score(self, counts: Mapping[str, float]) -> float:
        """BLEU in percent of summed counts."""
        right, ngrams = ([round(counts[f"{name}.{order}"]) for order in ORDERS] for name in ("right", "ngrams"))
        lengths = round(counts["length"]), round(counts["reference_length"])
        return float(self._metric.compute_bleu(right, ngrams, *lengths, smooth_method="exp").score)


def _lengths(found: Any) -> dict[str, int]:
    return {"length": int(found.sys_len), "reference_length": int(found.ref_len)}


def _library() -> Any:
    try:
        return importlib.import_module("sacrebleu.metrics")
    except ImportError as exc:
        raise ConfigError(
            "Translations are measured by the library 'sacrebleu', which is not installed. Run: pip install 'recurra[text]'."
        ) from exc
