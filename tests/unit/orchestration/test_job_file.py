"""The job file: whatever it says survives every way it travels."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.config.load import dump, parse
from recurra.errors import ConfigError
from recurra.orchestration.job_file import INLINE, JobFile, load_job

MINIMAL: dict[str, Any] = {"name": "a", "task": "language_model", "data": {"train": "file:///d"}, "train": {"steps": 5}}


def job(**changes: Any) -> JobFile:
    return parse({**MINIMAL, **changes}, JobFile)


texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)
jobs = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
        "task": st.sampled_from(["language_model", "classification", {"kind": "forecasting", "horizon": 3}]),
        "data": st.fixed_dictionaries({"train": texts.map(lambda text: f"file:///{text}")}),
        "model": st.fixed_dictionaries(
            {"cell": st.sampled_from(["rnn", "gru", "lstm"]), "hidden_size": st.integers(1, 4096)}
        ),
        "train": st.fixed_dictionaries(
            {
                "steps": st.integers(1, 10**9),
                "workers": st.one_of(st.integers(1, 64), st.tuples(st.integers(1, 4), st.integers(4, 9)).map(list)),
                "learning_rate": st.floats(1e-9, 1, allow_nan=False),
                "stop": st.fixed_dictionaries({"max_duration": st.sampled_from(["90s", "6h", 12.5])}),
            }
        ),
        "serve": st.fixed_dictionaries({"model": st.just("m@production"), "slots": st.integers(1, 4096)}),
    }
)


@settings(max_examples=30, deadline=None)
@given(jobs)
def test_a_job_is_the_same_after_every_journey(values: dict[str, Any]) -> None:
    """The law of this file: YAML for a ConfigMap and a word for a command line both give the job back."""
    before = parse(values, JobFile)
    assert load_job(before.inline()) == before
    assert before.inline().isascii() and " " not in before.inline()
    assert parse(dump(before), JobFile) == before


def test_yaml_can_be_read_from_a_file(tmp_path: Any) -> None:
    """A rendered ConfigMap is mounted as a file."""
    file = tmp_path / "job.yaml"
    file.write_text(job().to_yaml())
    assert load_job(file) == job()


def test_overrides_reach_an_inline_job() -> None:
    """`recurra train base64:...` is the entry point of a submitted job."""
    assert load_job(job().inline(), ["train.steps=7"]).train_run().train.steps == 7


@pytest.mark.parametrize("word", ["x", "eA=", "bmFtZTogW3g="])
def test_a_torn_inline_job_says_so(word: str) -> None:
    """Shells and logs cut long words."""
    with pytest.raises(ConfigError, match="job"):
        load_job(INLINE + word)


def test_a_train_run_has_everything_but_serving() -> None:
    """Training must not depend on how the model is served later."""
    run = job(publish={"model": "m"}, runs="file:///r").train_run()
    assert (run.name, run.runs, run.publish and run.publish.model) == ("a", "file:///r", "m")
    assert "serve" not in dump(run)


def test_settings_that_contradict_each_other_are_a_config_error() -> None:
    """pydantic's own text names a class, not a setting."""
    with pytest.raises(ConfigError, match="truncated_bptt"):
        job(data={"train": "file:///d", "mode": "lanes"}).train_run()


@pytest.mark.parametrize(
    ("serve", "publish", "model", "registry"),
    [
        (None, {"model": "m", "alias": "live"}, "m@live", "s3://recurra/registry"),
        ({"slots": 8}, {"model": "m"}, "m", "s3://recurra/registry"),
        ({"model": "other@v1"}, {"model": "m", "registry": "file:///g"}, "other@v1", "file:///g"),
        ({"model": "m@live"}, None, "m@live", "s3://recurra/registry"),
    ],
)
def test_what_is_served_is_what_was_published(serve: Any, publish: Any, model: str, registry: str) -> None:
    """One file trains and serves: the reference need not be written twice."""
    run = job(serve=serve, publish=publish).serve_run()
    assert (run.model, run.registry) == (model, registry)


def test_a_candidate_must_be_a_bundle_of_the_same_model() -> None:
    """Its sessions are kept together with the others; another model's is another service."""
    given = job(publish={"model": "m", "alias": "live"}, serve={"canary": {"model": "other@candidate"}})
    with pytest.raises(ConfigError, match="m@candidate"):
        given.serve_run()


@pytest.mark.parametrize(
    ("drop", "call", "said"),
    [
        ("train", JobFile.train_run, "no 'train' section"),
        ("data", JobFile.train_run, "recurra data write"),
        ("publish", JobFile.serve_run, "publish: {model: NAME"),
    ],
)
def test_a_missing_section_is_named(drop: str, call: Any, said: str) -> None:
    """Each of the three may be left out, until it is needed."""
    values = {**MINIMAL, drop: None}
    with pytest.raises(ConfigError, match=said):
        call(parse(values, JobFile))


@pytest.mark.parametrize("name", ["Upper", "-a", "a-", "a_b", "", "x" * 64])
def test_names_fit_kubernetes_and_urls(name: str) -> None:
    """The name becomes a RayJob, a Serve application and a prefix in the store."""
    with pytest.raises(ConfigError, match="name"):
        job(name=name)
