"""A driver that is killed: `driver.py ADDRESS`, the run and the workers' environment as JSON on standard input."""

from __future__ import annotations

import json
import sys

import ray

from recurra.config.load import parse
from recurra.training.ray_launch import launch
from recurra.training.run import TrainRun


def main() -> None:
    given = json.load(sys.stdin)
    ray.init(
        address=sys.argv[1],
        namespace="recurra",
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": given["environment"]},
    )
    launch(parse(given["run"], TrainRun), None, lambda event: None)


if __name__ == "__main__":
    main()
