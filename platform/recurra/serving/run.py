"""The root section of a service: what `recurra deploy` starts and `recurra render k8s` writes down."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from recurra.config.load import dump
from recurra.config.section import Section
from recurra.serving.config import ServeConfig

IMPORT_PATH = "recurra.serving.deployment:build_app"
"""What a Ray Serve application file names; it is called with `ServeRun.arguments()`."""


class Release(Section):
    """Which bundles a deployment serves, found out once when it is made: all of its replicas serve the same, those that
    come later, too, and an alias that has moved makes another deployment."""

    digest: str | None = None
    """null = what the reference means when a replica starts."""
    candidate: str | None = None
    made_s: float = 0.0
    """When it was made, in seconds since 1970; 0 = when a replica starts."""


class ServeRun(Section):
    """One application: a model of a registry behind an HTTP endpoint."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)
    """Name of the Ray Serve application."""
    model: str
    """Reference of the bundle: `name`, `name@alias` or `name@digest`."""
    registry: str
    """URL of the registry, such as `s3://recurra/registry`."""
    serve: ServeConfig = ServeConfig()
    release: Release = Release()

    @model_validator(mode="after")
    def _check_canary(self) -> ServeRun:
        canary = self.serve.canary
        name = self.model.partition("@")[0]
        if canary is not None and canary.model.partition("@")[0] != name:
            raise ValueError(
                f"serve.canary.model is {canary.model}, another model than {self.model}. "
                f"Publish the candidate as a bundle of {name}, and write {name}@candidate."
            )
        return self

    def arguments(self) -> dict[str, Any]:
        """What `build_app` takes, as JSON. No secret is in it: replicas read keys from their own environment."""
        found = {"name": self.name, "model": self.model, "registry": self.registry, "serve": dump(self.serve)}
        return found if self.release == Release() else {**found, "release": dump(self.release)}

    def application(self) -> dict[str, Any]:
        """One item of `applications` in Ray Serve's configuration file."""
        return {
            "name": self.name,
            "route_prefix": self.serve.route_prefix,
            "import_path": IMPORT_PATH,
            "args": self.arguments(),
        }
