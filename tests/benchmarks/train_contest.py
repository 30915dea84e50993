"""Training from S3 by ours, by Lightning and by Ray Train over Ray Data: real tokens a second, one worker with one thread.

The same rows, model, optimizer and batch of sequences; one dataset has rows of one length, in the other they are lognormal
(median 60, sigma 1, 4 to 2000). `bare` is the loop that one writes by hand, its batches made before the clock starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from bench_data import BUCKET, Bench, Contender, end_session, python_of, serving

from recurra.data.batch import Batch
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.training.callbacks.base import Callback
from recurra.training.ranks import SingleRank
from recurra.training.run import Origin, TrainRun
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer
from recurra.training.work import Surroundings, work

HERE = Path(__file__).parent / "train_peers"
sys.path.insert(0, str(HERE))
from training import CLIP_NORM, LEARNING_RATE, LanguageModel, Meter, Request, loss_of

BATCH, WARM, WIDTH = 64, 3, 128
LENGTHS = {"fixed": 1536, "varied": 1536}
"""Rows of each dataset: five rounds of all contenders end within a quarter of an hour."""
STEPS = 128
"""Of a row in the dataset of one length."""
LIMIT_S = 600
PEERS = {
    "lightning": Contender("lightning", ("lightning==2.6.6",)),
    "ray": Contender("ray", ("ray[data,train]==2.60.0",)),
}


@dataclass(frozen=True)
class Contest:
    """What all measurements share."""

    bench: Bench
    vocabulary: int

    def measure(self, name: str, lengths: str) -> float:
        """Real tokens a second of one contender, in a process of its own."""
        peer = PEERS.get(name)
        command = (
            [sys.executable, __file__, name, lengths]
            if peer is None
            else [str(python_of(self.bench, peer)), str(HERE / f"peer_{name}.py")]
        )
        keys = self.bench.server.environment()
        with tempfile.TemporaryDirectory(dir=self.bench.work) as folder:
            request = Request(
                parquet=f"{BUCKET}/{lengths}.parquet",
                endpoint=self.bench.server.endpoint_url,
                access_key=keys["AWS_ACCESS_KEY_ID"],
                secret_key=keys["AWS_SECRET_ACCESS_KEY"],
                folder=folder,
                vocabulary=self.vocabulary,
                width=WIDTH,
                batch=BATCH,
                steps=LENGTHS[lengths] // BATCH,
                warm=WARM,
            )
            log = self.bench.work / f"{name}.log"
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log.open("w"),
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            try:
                said, _ = process.communicate(json.dumps(asdict(request)), timeout=LIMIT_S)
            finally:
                end_session(process.pid)
        lines = said.splitlines()
        if not lines or not lines[-1].startswith("{"):
            raise RuntimeError(f"{name} gave no answer. The end of what it said:\n{log.read_text()[-2000:]}")
        return float(json.loads(lines[-1])["tokens_s"])


@contextmanager
def prepared(venvs: Path) -> Iterator[Contest]:
    """Both datasets in S3, ours and as Parquet."""
    vocabulary, generator = ByteVocabulary(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="recurra-bench-") as folder, serving(Path(folder)) as (server, client, _):
        for name, count in LENGTHS.items():
            lengths = np.clip(generator.lognormal(np.log(60), 1.0, count).astype(np.int64), 4, 2000)
            rows = [generator.integers(1, 256, STEPS if name == "fixed" else n).astype(np.uint16) for n in lengths]
            schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
            with DatasetWriter(f"s3://{BUCKET}/{name}", schema, {"vocabulary": vocabulary.to_json()}) as writer:
                for row in rows:
                    writer.write({"tokens": row})
            file = Path(folder, f"{name}.parquet")
            pyarrow.parquet.write_table(pa.table({"tokens": pa.array(rows, pa.list_(pa.uint16()))}), file)
            client.upload_file(str(file), BUCKET, file.name)
        yield Contest(Bench(Path(folder), venvs, server, client, {}, 0.0), vocabulary.size)


class Metered(Callback):
    """Counts the real tokens of our updates."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        self._meter.stepped(batch.global_tokens)
        return Due()


def run_of(request: Request, lengths: str) -> TrainRun:
    return TrainRun.model_validate(
        {
            "name": f"contest-{lengths}-{time.time_ns()}",
            "task": "language_model",
            "data": {"train": f"s3://{BUCKET}/{lengths}"},
            "model": {"cell": "lstm", "hidden_size": request.width},
            "train": {
                "steps": request.steps,
                "global_batch": {"sequences": request.batch},
                "learning_rate": LEARNING_RATE,
                "gradient_clip": {"norm": CLIP_NORM},
                "checkpoint_every": {"steps": 100_000},
            },
            "runs": f"s3://{BUCKET}/runs",
        }
    )


def ours(request: Request, lengths: str) -> float:
    meter = Meter(request.warm)
    work(run_of(request, lengths), Surroundings(emit=lambda event: None, callbacks=[Metered(meter)]))
    return meter.rate


def bare(request: Request, lengths: str) -> float:
    """The peers' model over our batches, which are there before the clock starts."""
    trainer = run_of(request, lengths).build(SingleRank(), Origin("bare", "cpu", None, None, print))
    made = [
        (torch.from_numpy(batch.columns["tokens"].astype(np.int64)), torch.from_numpy(batch.lengths))
        for batch, _ in zip(trainer.batches(), range(request.steps), strict=False)
    ]
    trainer.close()
    model = LanguageModel(request.vocabulary, request.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    meter = Meter(request.warm)
    for ids, row_lengths in made:
        optimizer.zero_grad()
        loss = loss_of(model, ids, row_lengths)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        loss.item()
        meter.stepped(int(row_lengths.sum()))
    return meter.rate


def main() -> None:
    torch.set_num_threads(1)
    request = Request(**json.load(sys.stdin))
    measured: dict[str, Any] = {"ours": ours, "bare": bare}
    print("\n" + json.dumps({"tokens_s": measured[sys.argv[1]](request, sys.argv[2])}), flush=True)


if __name__ == "__main__":
    main()
