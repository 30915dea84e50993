"""Which failure of a worker comes again at every attempt. Imports next to nothing: Ray's controller asks, too."""

from __future__ import annotations

from collections.abc import Mapping

from recurra.errors import RecurraError, StorageError


def own_error(failures: Mapping[int, BaseException]) -> RecurraError | None:
    """The error of ours that is behind the failures of a run's workers, by rank; the lowest rank's where there are several."""
    for _, failure in sorted(failures.items()):
        chain: BaseException | None = failure
        while chain is not None:
            if isinstance(chain, RecurraError):
                return chain
            chain = chain.__cause__
    return None


def comes_again(error: RecurraError | None) -> bool:
    """Whether trying again is of no use: a store may answer then, but a loss that is not finite will not be."""
    return error is not None and not isinstance(error, StorageError)
