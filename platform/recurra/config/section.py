"""Base of every section of the job file."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, documented group of settings.

    Sections stand next to what they build, refuse unknown keys, describe each field by a string
    below it (which becomes the description in `recurra schema`), and check themselves with
    validators that raise `ValueError` in the house's words: setting, value seen, what to type.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)
