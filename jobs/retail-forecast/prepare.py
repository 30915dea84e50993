"""Write Australian retail turnover (ABS 8501.0, table 11) as two datasets of monthly series, OUT/train and OUT/test."""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError, RecurraError

SCHEMA = SequenceSchema(
    (
        Column("values", "float32"),
        Column("start", "string", axis="sequence"),
        Column("holdout", "int32", axis="sequence"),
        Column("state", "int32", axis="sequence"),
        Column("industry", "int32", axis="sequence"),
    )
)
HELD_OUT = 24
"""Last months of each series, which training does not see."""
SHORTEST = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="directory of turnover_wide.csv and series.csv")
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/retail or file:///tmp/retail")
    arguments = parser.parse_args()
    with (arguments.source / "series.csv").open(encoding="utf-8", newline="") as file:
        about = {row["Series ID"]: row for row in csv.DictReader(file)}
    groups = {name: sorted({row[name.capitalize()] for row in about.values()}) for name in ("state", "industry")}
    with (arguments.source / "turnover_wide.csv").open(encoding="utf-8", newline="") as file:
        months = list(csv.DictReader(file))
    series: list[dict[str, Any]] = []
    for name, row in about.items():
        known = [(month["Month"], float(month[name])) for month in months if month[name]]
        if len(known) >= SHORTEST:
            indices = {key: groups[key].index(row[key.capitalize()]) for key in groups}
            series.append({"values": [value for _, value in known], "start": known[0][0], "holdout": 0, **indices})
    past = [{**item, "values": item["values"][:-HELD_OUT]} for item in series]
    write(f"{arguments.out.rstrip('/')}/train", past, groups)
    write(f"{arguments.out.rstrip('/')}/test", [{**item, "holdout": HELD_OUT} for item in series], groups)


def write(url: str, series: list[dict[str, Any]], groups: dict[str, list[str]]) -> None:
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} series and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, SCHEMA, {"frequency": "month", "static": groups}) as writer:
            for item in series:
                writer.write(item)
        print(f"{url}: {len(series)} series, {sum(len(item['values']) for item in series):,} months")


if __name__ == "__main__":
    try:
        main()
    except (RecurraError, OSError) as exc:
        sys.exit(str(exc))
