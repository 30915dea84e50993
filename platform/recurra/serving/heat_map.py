"""Heat maps as PNG files (ISO/IEC 15948), without a plotting library: one byte a pixel, and a palette."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
STOPS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""From the lowest value to the highest: dark violet, blue, teal, green, yellow. Its lightness rises all the way."""
SHADES = 255
GAP = 255
"""Index of the colour between two panels."""
GAP_COLOUR = (255, 255, 255)


def png(panels: Sequence[NDArray[np.floating]], cell: int = 6) -> bytes:
    """Panels [rows, columns] one below the other, the first at the top; each is scaled to its own range.

    Args:
        panels: Of the same number of columns.
        cell: Pixels of one value, both ways.
    """
    columns = panels[0].shape[1]
    gap = np.full((cell, columns * cell), GAP, np.uint8)
    parts: list[NDArray[np.uint8]] = []
    for panel in panels:
        parts += [gap] * bool(parts) + [np.kron(_indices(panel), np.ones((cell, cell), np.uint8))]
    return _file(np.concatenate(parts))


def _indices(panel: NDArray[np.floating]) -> NDArray[np.uint8]:
    low, high = float(panel.min(initial=0.0)), float(panel.max(initial=0.0))
    spread = (high - low) or 1.0
    return np.round((panel.astype(np.float64) - low) / spread * (SHADES - 1)).astype(np.uint8)


def _palette() -> bytes:
    places = np.linspace(0, len(STOPS) - 1, SHADES)
    channels = [np.interp(places, range(len(STOPS)), [stop[channel] for stop in STOPS]) for channel in range(3)]
    return np.stack(channels, 1).round().astype(np.uint8).tobytes() + bytes(GAP_COLOUR)


def _file(pixels: NDArray[np.uint8]) -> bytes:
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits, indexed, not interlaced
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], 1)  # filter type 0 before each row
    chunks = ((b"IHDR", header), (b"PLTE", _palette()), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
