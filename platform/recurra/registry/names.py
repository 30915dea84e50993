"""Names of models and aliases, and what a reference to a bundle looks like."""

from __future__ import annotations

import re

from recurra.errors import RegistryError

MODEL = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$"
ALIAS = r"^(?![0-9a-f]{4,64}$)[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$"
"""An alias of hexadecimal digits alone would be taken for the start of a digest."""
PREFIX = re.compile(r"[0-9a-f]{4,64}")
"""How a digest may be shortened."""
DEFAULT_ALIAS = "production"
"""What a model's name alone means, once the model has this alias."""


def is_model(name: str) -> bool:
    """Whether a model may have this name."""
    return re.fullmatch(MODEL, name) is not None


def check_model(name: str) -> str:
    """The name itself.

    Raises:
        RegistryError: It is no name of a model.
    """
    if not is_model(name):
        raise RegistryError(
            f"{name!r} is no name of a model. Use up to 100 letters, digits, dots, hyphens and underscores, "
            "with a letter or digit first and last."
        )
    return name


def check_alias(alias: str) -> str:
    """The alias itself.

    Raises:
        RegistryError: It is no alias, or looks like a digest.
    """
    if not re.fullmatch(ALIAS, alias):
        raise RegistryError(
            f"{alias!r} is no alias. Use a word such as 'production': up to 64 letters, digits, dots, hyphens and "
            "underscores that are not all hexadecimal digits."
        )
    return alias


def split_reference(reference: str) -> tuple[str, str]:
    """Model and what follows the '@' (empty without one).

    Raises:
        RegistryError: It is no reference.
    """
    name, at, version = reference.partition("@")
    if at and not version:
        raise RegistryError(
            f"{reference!r} names no version after the '@'. Write {name}@{DEFAULT_ALIAS}, or {name} alone."
        )
    return check_model(name), version
