"""Sound as features: log-mel energies and mel cepstra (Davis and Mermelstein 1980), with HTK's formulas. NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recurra.errors import ConfigError, DataError

Floats = NDArray[np.float64]
PRE_EMPHASIS = 0.97
_FLOOR = 1e-10
"""Energy below which silence is silence: samples are in [-1, 1)."""


@dataclass(frozen=True)
class FrontEnd:
    """From samples to a feature vector for each frame. Kept in a dataset's metadata, so that serving does the same."""

    rate: int
    """Samples a second."""
    kind: Literal["log_mel", "mfcc"] = "log_mel"
    filters: int = 40
    """Triangles on the mel scale."""
    cepstra: int = 13
    """Coefficients that are kept, the zeroth among them; mfcc only."""
    window_s: float = 0.025
    step_s: float = 0.010
    low_hz: float = 60.0
    high_hz: float | None = None
    """None = half of the rate."""

    def __post_init__(self) -> None:
        high = self.rate / 2 if self.high_hz is None else self.high_hz
        if not 0 <= self.low_hz < high <= self.rate / 2:
            raise ConfigError(
                f"The front end's band is {self.low_hz:g} to {high:g} Hz at {self.rate} samples a second. "
                f"Set 0 <= low_hz < high_hz <= {self.rate / 2:g}."
            )
        if self.kind == "mfcc" and not 1 <= self.cepstra <= self.filters:
            raise ConfigError(
                f"The front end has {self.cepstra} cepstra of {self.filters} filters. Keep 1 to {self.filters}."
            )

    @property
    def width(self) -> int:
        """Features of a frame (F)."""
        return self.filters if self.kind == "log_mel" else self.cepstra

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return round(self.window_s * self.rate)

    @property
    def step(self) -> int:
        """Samples between the starts of two frames."""
        return round(self.step_s * self.rate)

    def features(self, samples: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """[T, F] of [N] samples in [-1, 1); T = 1 + (N - window) // step, so every frame is full.

        Raises:
            DataError: There is not one full frame.
        """
        if samples.ndim != 1 or len(samples) < self.window:
            raise DataError(
                f"A recording has shape {list(samples.shape)}, and a frame needs {self.window} samples of one channel. "
                "Leave it out, or send a longer one."
            )
        powers_TK = np.abs(np.fft.rfft(self._frames(samples.astype(np.float64)), self._bins)) ** 2
        logs_TM = np.log(np.maximum(powers_TK @ self._triangles.T, _FLOOR))
        found = logs_TM if self.kind == "log_mel" else logs_TM @ dct(self.filters, self.cepstra).T
        return found.astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FrontEnd:
        return cls(**value)

    def _frames(self, samples: Floats) -> Floats:
        sharper = np.append(samples[0] * (1 - PRE_EMPHASIS), samples[1:] - PRE_EMPHASIS * samples[:-1])
        return np.lib.stride_tricks.sliding_window_view(sharper, self.window)[:: self.step] * np.hamming(self.window)

    @property
    def _bins(self) -> int:
        """Points of the Fourier transform: the next power of two."""
        return 1 << (self.window - 1).bit_length()

    @cached_property
    def _triangles(self) -> Floats:
        high = self.rate / 2 if self.high_hz is None else self.high_hz
        return mel_triangles(self.filters, self._bins, self.rate, (self.low_hz, high))


def mel(hz: Floats | float) -> Floats:
    """2595 log10(1 + f / 700): the scale on which listeners hear equal steps (HTK's form)."""
    return np.asarray(2595 * np.log10(1 + np.asarray(hz) / 700))


def hertz(mels: Floats | float) -> Floats:
    """The inverse of `mel`."""
    return np.asarray(700 * (10 ** (np.asarray(mels) / 2595) - 1))


def mel_triangles(filters: int, bins: int, rate: int, band_hz: tuple[float, float]) -> Floats:
    """[M, bins // 2 + 1] weights: triangle m rises from edge m to 1 at edge m + 1 and falls to edge m + 2; the edges are
    equally spaced in mels."""
    edges_hz = hertz(np.linspace(mel(band_hz[0]), mel(band_hz[1]), filters + 2))
    frequencies_hz = np.arange(bins // 2 + 1) * rate / bins
    low, middle, high = (edges_hz[index : index + filters, None] for index in range(3))
    rising = (frequencies_hz - low) / (middle - low)
    falling = (high - frequencies_hz) / (high - middle)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))


def dct(size: int, count: int) -> Floats:
    """[count, size] the first rows of the orthonormal cosine transform (type II)."""
    n, k = np.arange(size), np.arange(count)[:, None]
    rows = np.sqrt(2 / size) * np.cos(np.pi * k * (2 * n + 1) / (2 * size))
    rows[0] /= np.sqrt(2)
    return np.asarray(rows)
