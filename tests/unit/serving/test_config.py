"""The `serve` section says what is wrong before anything is started."""

import json

import pytest

from recurra.config.load import parse
from recurra.errors import ConfigError
from recurra.serving.config import ServeConfig
from recurra.serving.run import ServeRun

RUN = {"name": "lm", "model": "lm@production", "registry": "s3://b/registry"}


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        ({"replicas": 0}, r"serve.replicas is 0. Set it to at least 1, or to \[0, 4\]"),
        ({"replicas": [3, 1]}, r"serve.replicas is \[3, 1\]. Write \[min, max\]"),
        ({"replicas": [0, 0]}, r"Write \[min, max\]"),
        ({"slot": 3}, "Did you mean 'slots'"),
        ({"slots": 0}, "serve.slots is 0"),
        ({"route_prefix": "lm"}, "serve.route_prefix is 'lm'"),
        ({"sessions": {"ttl": 3}}, "Did you mean 'ttl_s'"),
    ],
)
def test_a_wrong_setting_is_named(serve, message):
    """The message names the setting, the value, and what to write."""
    with pytest.raises(ConfigError, match=message):
        parse({**RUN, "serve": serve}, ServeRun)


def test_the_arguments_of_an_application_make_the_same_run():
    """They travel as JSON through Ray Serve's REST interface, and hold no secret."""
    run = parse({**RUN, "serve": {"replicas": [0, 8], "slots": 16}}, ServeRun)
    arguments = json.loads(json.dumps(run.application()["args"]))

    assert parse(arguments, ServeRun) == run
    assert run.application()["import_path"] == "recurra.serving.deployment:build_app"
    assert run.application()["route_prefix"] == "/"


def test_the_queue_of_the_engine_decides_before_rays():
    """Ray's limit lies beyond it, so that a full service answers 429 at once instead of letting clients wait."""
    config = ServeConfig(slots=10, max_queue=20)

    assert config.open_requests > 30
    assert ServeConfig(cpus_per_replica=0.5).torch_threads == 1
    assert ServeConfig(cpus_per_replica=4).torch_threads == 4
    assert ServeConfig(replicas=3).replica_range == (3, 3)
