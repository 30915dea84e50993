"""What a Neural Turing Machine holds and did: memory matrix, and the weightings of its heads at the last steps.

Graves, Wayne, Danihelka, "Neural Turing Machines", arXiv:1410.5401, section 3; the heat maps are those of its figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from recurra.models.sequence import SequenceModel
from recurra.serving.heat_map import png
from recurra.serving.slots import StateLayout
from recurra.serving.snapshot import Snapshot

MEMORY = "core.memory"
NTM = "ntm"
LARGEST_PIXELS = 1 << 22


@dataclass(frozen=True)
class MemoryView:
    """Of one session, after its last step."""

    id: str
    step: int
    memory_MN: NDArray[np.float32]
    """Word size M by locations N."""
    read_TRN: NDArray[np.float32]
    """Weighting of each read head at the last T steps."""
    write_TWN: NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "step": self.step,
            "first_step": self.step - len(self.read_TRN),
            "memory": self.memory_MN.tolist(),
            "read_weights": self.read_TRN.tolist(),
            "write_weights": self.write_TWN.tolist(),
        }

    def to_arrow(self) -> bytes:
        """An Arrow IPC stream of one row whose columns are those of the JSON, as nested lists of float32."""
        numbers = pa.list_(pa.list_(pa.float32()))
        kinds = {
            "id": pa.string(),
            "step": pa.int64(),
            "first_step": pa.int64(),
            "memory": numbers,
            "read_weights": pa.list_(numbers),
            "write_weights": pa.list_(numbers),
        }
        table = pa.table({name: pa.array([value], kinds[name]) for name, value in self.to_json().items()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue().to_pybytes())

    def to_png(self) -> bytes:
        """Locations from left to right; from the top the memory's words, the read weightings and the write weightings,
        a row for each step and head, the last step lowest."""
        locations = self.memory_MN.shape[1]
        panels = [self.memory_MN]
        panels += [part.reshape(-1, locations) for part in (self.read_TRN, self.write_TWN) if part.size]
        pixels = sum(panel.size for panel in panels)
        cell = max(1, min(6, int((LARGEST_PIXELS / max(1, pixels)) ** 0.5)))
        return png(panels, cell)


def view(model: SequenceModel, layout: StateLayout, snapshot: Snapshot, steps: int) -> MemoryView:
    """The memory of a session, and its last weightings, computed again from its trail. Blocking; takes `steps` steps.

    Args:
        steps: How many at most; a session keeps about `sessions.trace_steps`.
    """
    with torch.inference_mode():
        memory_MN = layout.unpack([snapshot.state])[MEMORY][0].float().numpy()
        locations = memory_MN.shape[1]
        heads = model.config.ntm
        read_TRN = np.zeros((0, heads.read_heads, locations), np.float32)
        write_TWN = np.zeros((0, heads.write_heads, locations), np.float32)
        trail = snapshot.trail
        if trail is not None and len(trail.inputs) and steps:
            inputs = torch.from_numpy(trail.inputs)[None].to(next(model.parameters()).device)
            device = inputs.device
            state = {name: value.to(device) for name, value in layout.unpack([trail.older]).items()}
            found = model.trace(inputs, state).weightings
            read_TRN = found["read_weights"][0, -steps:].float().cpu().numpy()
            write_TWN = found["write_weights"][0, -steps:].float().cpu().numpy()
    return MemoryView(snapshot.id, snapshot.step - len(snapshot.pending), memory_MN, read_TRN, write_TWN)
