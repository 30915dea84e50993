"""The `publish` section of the job file."""

from __future__ import annotations

from pydantic import field_validator

from recurra.config.section import Section
from recurra.errors import ConfigError, RegistryError
from recurra.registry.names import check_alias, check_model
from recurra.storage.url import check_url


class PublishConfig(Section):
    """Where a finished run puts its best model, and under which name."""

    model: str
    """Name of the model in the registry; each run adds a bundle to it."""
    alias: str | None = None
    """Alias to point at the new bundle, such as `candidate` or `production`; null = leave all aliases as they are."""
    registry: str = "s3://recurra/registry"
    """Address of the registry: `s3://bucket/prefix` or `file:///dir`."""
    int8: bool = False
    """Read evaluation data with 8-bit matrices, too, as `serve.step_precision: int8` does on small devices, and say in the
    bundle's card what that loses and gains. For rnn, gru and lstm."""

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str) -> str:
        try:
            return check_model(model)
        except RegistryError as exc:
            raise ValueError(f"publish.model: {exc}") from exc

    @field_validator("alias")
    @classmethod
    def _check_alias(cls, alias: str | None) -> str | None:
        try:
            return check_alias(alias) if alias is not None else None
        except RegistryError as exc:
            raise ValueError(f"publish.alias: {exc}") from exc

    @field_validator("registry")
    @classmethod
    def _check_registry(cls, registry: str) -> str:
        try:
            return check_url(registry)
        except ConfigError as exc:
            raise ValueError(f"publish.registry: {exc}") from exc
