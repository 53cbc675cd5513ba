"""What can be done about a finding with one call; originals are never changed, and all of it can be taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorakit.data import DataConfig
from lorakit.examine.finding import Finding
from lorakit.project import Project


@dataclass(frozen=True)
class Fix:
    """One row: `apply(project, config, finding, answer)` does it and returns a sentence for each thing that it did.

    label      on a button; `help` says what happens and how it is taken back
    answers    what a person must choose first (`answer` is one of these), empty when nothing is asked
    """

    name: str
    label: str
    help: str
    apply: Callable[[Project, DataConfig, Finding, str], list[str]]
    answers: tuple[str, ...] = ()


FIXES: dict[str, Fix] = {}
