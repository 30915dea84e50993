from __future__ import annotations

import json
import math

import pytest

from recurra.errors import IntegrityError, RegistryError
from recurra.registry.bundle import Bundle

from .weather import parts, weights

WEIGHTS = weights()
BUNDLE = Bundle.of(parts(), WEIGHTS, "2026-01-01T00:00:00+00:00")


def altered(**changes: object) -> bytes:
    return json.dumps({**json.loads(BUNDLE.to_json()), **changes}).encode()


def test_what_is_written_is_read_back():
    """Training writes it and serving reads it, perhaps a year later."""
    assert Bundle.from_json(BUNDLE.to_json(), BUNDLE.digest, "file") == BUNDLE


def test_equal_content_has_an_equal_digest_whenever_it_is_published():
    """A run that is resumed after its last step publishes again, and must not make a second bundle."""
    assert Bundle.of(parts(), WEIGHTS, "2027-01-01T00:00:00+00:00").digest == BUNDLE.digest


@pytest.mark.parametrize(
    "change",
    [
        {"task": {"kind": "other"}},
        {"model": {"cell": "gru"}},
        {"shape": {}},
        {"state_spec": []},
        {"metrics": {"accuracy": 0.76}},
        {"data_digest": "e" * 64},
        {"lineage": {}},
        {"card": {"parameters": 5}},
    ],
)
def test_every_part_is_in_the_digest(change):
    """Two bundles that differ anywhere are two bundles."""
    assert Bundle.of(parts(**change), WEIGHTS, "").digest != BUNDLE.digest


def test_a_bundle_without_a_card_keeps_its_digest():
    """Cards came later than bundles: what was published before must still be found under its name."""
    old = json.loads(BUNDLE.to_json())
    del old["card"]
    assert Bundle.from_json(json.dumps(old).encode(), BUNDLE.digest, "file") == BUNDLE


def test_a_card_that_was_taken_out_is_noticed():
    """Limits are there to be read."""
    bundle = Bundle.of(parts(card={"limits": ["none"]}), WEIGHTS, "")
    content = json.loads(bundle.to_json())
    for change in ({"card": {}}, {"card": {"limits": []}}):
        with pytest.raises(IntegrityError, match="was altered"):
            Bundle.from_json(json.dumps({**content, **change}).encode(), bundle.digest, "file")


def test_other_weights_are_another_bundle():
    """The weights are the largest part, and enter by their own hash."""
    assert Bundle.of(parts(), weights(1), "").digest != BUNDLE.digest


def test_a_metric_that_is_not_finite_is_kept_as_null():
    """JSON has no NaN, and a run must not fail at its very end because of one metric."""
    bundle = Bundle.of(parts(metrics={"loss": math.nan, "mase": math.inf, "accuracy": 0.5}), WEIGHTS, "")

    assert bundle.metrics == {"loss": None, "mase": None, "accuracy": 0.5}


def test_a_part_that_is_no_json_is_named():
    """A tensor in the lineage is found when it is published, not when it is served."""
    with pytest.raises(RegistryError, match="no JSON.*type object.*plain values"):
        Bundle.of(parts(lineage={"x": object()}), WEIGHTS, "")


def test_no_weights_are_refused():
    """An empty file would be a bundle that never loads."""
    with pytest.raises(RegistryError, match="0 bytes"):
        Bundle.of(parts(), b"", "")


def test_another_format_says_which_version_and_what_to_do():
    """After a downgrade the way out is the newer program, not a stack trace."""
    data = altered(format_version=7, written_by="3.1", surprise=1)

    with pytest.raises(RegistryError, match=r"is of format 7, and this .* reads format 1\. Use .* \(recurra 3\.1\)"):
        Bundle.from_json(data, BUNDLE.digest, "file")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", altered(surprise=1), altered(metrics={}), altered(digest="0")]
)
def test_a_file_that_was_altered_is_refused(data):
    """The digest in its address is what was promoted."""
    with pytest.raises(IntegrityError, match="^file .*Publish the model again"):
        Bundle.from_json(data, BUNDLE.digest, "file")


def test_weights_that_were_altered_are_refused():
    """One flipped bit is another model."""
    BUNDLE.check_weights(WEIGHTS, "file")
    with pytest.raises(IntegrityError, match=f"^file holds {len(WEIGHTS)} bytes that are not the {len(WEIGHTS)}"):
        BUNDLE.check_weights(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]), "file")
