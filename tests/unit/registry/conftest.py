"""A registry in a directory, and one that holds three bundles."""

from __future__ import annotations

import pytest

from recurra.registry.registry import Registry

from .weather import parts, registry_at, weights


@pytest.fixture
def registry(local_url: str) -> Registry:
    return registry_at(local_url)


@pytest.fixture
def three(registry: Registry) -> list[str]:
    """Digests of three bundles of the model `weather`, oldest first, without an alias."""
    return [registry.publish("weather", parts(), weights(seed)) for seed in range(3)]
