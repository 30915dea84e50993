"""From a problem's name and settings to the problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from recurra.tasks.problems.base import Problem
from recurra.tasks.problems.copying import Copy, RepeatCopy
from recurra.tasks.problems.ngrams import DynamicNgrams
from recurra.tasks.problems.recall import AssociativeRecall
from recurra.tasks.problems.sorting import PrioritySort

PROBLEMS: dict[str, type[Problem]] = {
    problem.name: problem for problem in (Copy, RepeatCopy, AssociativeRecall, DynamicNgrams, PrioritySort)
}
ProblemName = Literal["copy", "repeat_copy", "associative_recall", "dynamic_ngrams", "priority_sort"]


def problem_from_description(description: Mapping[str, Any]) -> Problem:
    """The problem that `Problem.describe` described.

    Raises:
        KeyError, TypeError: The description is of a problem, or has settings, that this version does not know.
    """
    settings = dict(description)
    return PROBLEMS[settings.pop("name")](**settings)
