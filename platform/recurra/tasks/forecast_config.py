"""The `task` section of a forecasting job, and the columns that its datasets have."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from recurra.config.section import Section
from recurra.tasks.distributions import DistributionName
from recurra.tasks.history import Transform

START = "start"
"""Sequence column of text: the time of each series' first step."""

HOLDOUT = "holdout"
"""Sequence column: how many of the last steps are held out. Only the forecast made just before them counts; 0 = every
step is an origin that counts."""


class ForecastingConfig(Section):
    """Forecast the next values of each series, with their uncertainty.

    Every step of a series is an origin that predicts the `horizon` values behind it (forking sequences: Wen et al.
    2017, arXiv 1711.11053). Values are seen relative to the series' own last season, and the model predicts how far
    the future is from that season's level and the usual swing around it.
    """

    kind: Literal["forecasting"] = "forecasting"
    column: str = "values"
    """Time column, float32: one value a step."""
    horizon: int = Field(default=24, ge=1, le=1024)
    """Steps ahead (F)."""
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    """Rising, each above 0 and below 1, 0.5 among them."""
    distribution: DistributionName = "quantiles"
    """What is said of each value: these quantiles; one `point`; or a distribution, from which the quantiles are taken:
    gaussian, student_t (series with outliers), negative_binomial (counts). A distribution answers with any quantile."""
    transform: Transform = "none"
    """`log` for values above 0 whose changes are proportional to their size, `log1p` with zeros among them."""
    season: int | None = Field(default=None, ge=1, le=8192)
    """Steps of a season; null = the usual one of the dataset's frequency (month: 12)."""
    history: int | None = Field(default=None, ge=2)
    """Latest steps of a series that are read, and that training learns from; null = all."""
    known: tuple[str, ...] = ()
    """Time columns, float32 of about unit size, whose values are known `horizon` steps ahead, such as prices and holidays.
    Each step sees its own and those of the steps that it forecasts."""
    static: tuple[str, ...] = ()
    """Sequence columns that group series: an index into metadata['static'][name]."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.distribution == "negative_binomial" and self.transform != "none":
            raise ValueError(
                f"task.distribution is negative_binomial, of counts, with task.transform: {self.transform}. "
                "Set transform to none."
            )
        rising = all(low < high for low, high in zip(self.quantiles, self.quantiles[1:], strict=False))
        if not rising or 0.5 not in self.quantiles or not all(0 < level < 1 for level in self.quantiles):
            raise ValueError(
                f"task.quantiles is {list(self.quantiles)}. Write rising numbers above 0 and below 1 with 0.5 among them, "
                "such as [0.1, 0.5, 0.9]."
            )
        return self
