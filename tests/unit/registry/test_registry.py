from __future__ import annotations

import pytest
import torch

from recurra.errors import IntegrityError, RegistryError
from recurra.registry.loading import load_model
from recurra.registry.registry import Registry
from recurra.storage.url import open_store

from .weather import MODEL, TASK, parts, registry_at, weights


@pytest.mark.parametrize("place", ["local_url", "s3_url"])
def test_what_was_published_answers_as_it_did_in_training(request, place):
    """The same numbers from the same weights, through the real store."""
    registry = registry_at(request.getfixturevalue(place))
    torch.manual_seed(0)
    trained = TASK.build_model(MODEL).eval()
    registry.publish("weather", parts(), weights(0), alias="production")
    x_BTD = torch.randn(2, 5, 3)

    loaded = load_model(registry, "weather@production")

    assert torch.equal(loaded.model(x_BTD)[0], trained(x_BTD)[0])
    assert loaded.task.describe() == TASK.describe()
    assert not loaded.model.training
    assert loaded.bundle.metrics == {"accuracy": 0.75}


def test_a_name_alone_means_production_or_else_the_latest(registry, three):
    """`recurra deploy` right after the first training has to find it."""
    assert registry.resolve("weather") == three[2]
    registry.promote("weather", three[0][:12], "production")
    assert registry.resolve("weather") == three[0]


def test_a_digest_may_be_shortened_while_it_is_clear(registry, three, monkeypatch):
    """Nobody types 64 digits."""
    assert registry.resolve(f"weather@{three[1][:10]}") == three[1]
    assert registry.resolve(f"weather@{three[1]}") == three[1]
    twins = ["abcd" + "0" * 60, "abcd" + "1" * 60]
    monkeypatch.setattr(Registry, "digests", lambda self, name: twins)
    with pytest.raises(RegistryError, match="fits 2 bundles: abcd00000000, abcd11111111. Write more digits"):
        registry.resolve("weather@abcd")


def test_what_does_not_exist_is_answered_with_what_does(registry, three):
    """The list is most often the answer."""
    registry.promote("weather", three[0][:12], "production")

    with pytest.raises(RegistryError, match=r"no model 'wether' in file:.*Did you mean 'weather'\?"):
        load_model(registry, "wether@production")
    for reference in ("weather@canary", "weather@00000000"):
        with pytest.raises(RegistryError, match=rf"Its aliases: production \({three[0][:12]}\).*{three[2][:12]}"):
            registry.resolve(reference)
    for call in (registry.history, registry.bundles):
        with pytest.raises(RegistryError, match="no model 'wether'"):
            call("wether")
    with pytest.raises(RegistryError, match="weather has no alias 'canary'"):
        registry.rollback("weather", "canary")


def test_the_history_tells_who_when_what_and_why(registry, three):
    """The first question after an incident."""
    registry.promote("weather", three[0][:12], "production", reason="first")
    registry.promote("weather", three[1][:12], "production", reason="better on storms")
    registry.rollback("weather", "production", reason="too slow")

    told = [(e.number, e.action, e.alias, e.digest, e.previous, e.actor, e.reason) for e in registry.history("weather")]
    assert told == [
        (1, "promote", "production", three[0], None, "ada@host", "first"),
        (2, "promote", "production", three[1], three[0], "ada@host", "better on storms"),
        (3, "rollback", "production", three[0], three[1], "ada@host", "too slow"),
    ]
    assert [entry.time for entry in registry.history("weather")] == sorted(e.time for e in registry.history("weather"))


def test_rolling_back_twice_goes_back_twice(registry, three):
    """It must not swing between the two latest, one of which may be the bad one."""
    for digest in three:
        registry.promote("weather", digest[:12], "production")

    assert registry.rollback("weather", "production") == three[1]
    assert registry.rollback("weather", "production") == three[0]
    with pytest.raises(RegistryError, match="weather@production has nothing to go back to"):
        registry.rollback("weather", "production")
    assert registry.resolve("weather@production") == three[0]


def test_an_alias_can_follow_another(registry, three):
    """`candidate` becomes `production` without anybody copying digits."""
    registry.promote("weather", three[1][:12], "candidate")

    assert registry.promote("weather", "candidate", "production") == three[1]
    assert registry.aliases("weather") == {"candidate": three[1], "production": three[1]}


def test_publishing_the_same_again_changes_nothing(registry):
    """A run that was killed after publishing does it again when it is resumed."""
    first = registry.publish("weather", parts(), weights(), alias="candidate")
    created = registry.bundle("weather", first).created

    assert registry.publish("weather", parts(), weights(), alias="candidate") == first
    assert registry.bundle("weather", first).created == created
    assert len(registry.history("weather")) == 1


def test_a_bundle_without_its_last_file_does_not_exist(registry, local_url):
    """Killed between the two files, publishing has not happened."""
    digest = registry.publish("weather", parts(), weights())
    open_store(local_url).delete(f"models/weather/bundles/{digest}/bundle.json")

    assert registry.models() == []
    with pytest.raises(RegistryError, match="no model 'weather'"):
        load_model(registry, "weather")


@pytest.mark.parametrize("file", ["model.safetensors", "bundle.json"])
def test_one_altered_byte_is_found_named_and_mended_by_publishing_again(registry, local_url, file):
    """A wrong model must not answer, and the message tells the way out."""
    digest = registry.publish("weather", parts(), weights(), alias="production")
    store, key = open_store(local_url), f"models/weather/bundles/{digest}/{file}"
    data = bytearray(store.read(key))
    data[data.index(b"0.75") if file == "bundle.json" else -1] ^= 1
    store.write(key, bytes(data))

    with pytest.raises(IntegrityError, match=f"{digest}/{file}.*[Pp]ublish the model again"):
        load_model(registry, "weather@production")
    registry.publish("weather", parts(), weights(), alias="production")
    load_model(registry, "weather@production")


def test_missing_weights_are_named(registry, local_url):
    """Somebody's clean-up took the large files."""
    digest = registry.publish("weather", parts(), weights())
    open_store(local_url).delete(f"models/weather/bundles/{digest}/model.safetensors")

    with pytest.raises(IntegrityError, match=r"model\.safetensors is missing"):
        load_model(registry, "weather")


def test_a_bundle_of_another_format_does_not_hide_the_others(registry, three, local_url):
    """After a downgrade, `recurra models show` still has to show what can be served."""
    store, key = open_store(local_url), f"models/weather/bundles/{three[0]}/bundle.json"
    store.write(key, store.read(key).replace(b'"format_version": 1', b'"format_version": 9'))

    assert [bundle.digest for bundle in registry.bundles("weather")] == three[1:]
    with pytest.raises(RegistryError, match="is of format 9"):
        load_model(registry, f"weather@{three[0][:12]}")


def test_nothing_but_bundles_of_another_format_says_so(registry, local_url):
    """A name alone has then nothing to mean."""
    digest = registry.publish("weather", parts(), weights())
    store, key = open_store(local_url), f"models/weather/bundles/{digest}/bundle.json"
    store.write(key, store.read(key).replace(b'"format_version": 1', b'"format_version": 9'))

    with pytest.raises(RegistryError, match="All bundles of weather are of another format"):
        registry.resolve("weather")


def test_models_are_listed_with_aliases_and_counts(registry, three, local_url):
    """What `recurra models list` prints."""
    registry.publish("alarm", parts(), weights(), alias="production")
    open_store(local_url).write(f"models/not a model/bundles/{'0' * 64}/bundle.json", b"{}")

    assert [(e.name, sorted(e.aliases), e.bundles) for e in registry.models()] == [
        ("alarm", ["production"], 1),
        ("weather", [], 3),
    ]


def test_a_name_that_cannot_be_used_is_refused_before_anything_is_written(registry):
    """Half a publication helps nobody."""
    for name, alias in (("a b", None), ("weather", "beef")):
        with pytest.raises(RegistryError, match="is no"):
            registry.publish(name, parts(), weights(), alias=alias)
    assert registry.models() == []


def test_the_actor_is_the_user_by_default(local_url):
    """Nobody sets it by hand."""
    registry = Registry(local_url)
    registry.publish("weather", parts(), weights(), alias="production")

    (entry,) = registry.history("weather")
    assert "@" in entry.actor
    assert entry.time.endswith("+00:00")
