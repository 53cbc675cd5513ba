"""The report of a dataset check: findings, each with its images, and statistics of the dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lorakit.data.scan import Sample

# Worst first. error: something is lost or broken; warning: look at it; tip: good to know.
SEVERITIES = ("error", "warning", "tip")


@dataclass(frozen=True)
class CheckResult:
    """What a check found; there is a problem if it has images or details.

    images     names (`Sample.name`) of the images concerned; those that belong together are adjacent
    details    name of an image, folder or tag -> what to show beside it
    targets    names that a fix changes; empty: all of `images`
    fields     values for the texts of the check's row, besides `n`, the number of images
    """

    images: tuple[str, ...] = ()
    details: dict[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetFinding(CheckResult):
    """One problem of a dataset.

    kind       name of the check (row of `CHECKS`) that found it
    severity   one of `SEVERITIES`
    text       its title and `reason` why it matters, with `{fields}`, so that they can be translated; `title` and
               `why` are the English sentences
    fix        name of a row of `FIXES`, "" for none
    """

    kind: str
    severity: str
    text: str
    reason: str
    fix: str = ""

    @property
    def title(self) -> str:
        """The title with its numbers."""
        return self.text.format(**self.fields)

    @property
    def why(self) -> str:
        """The reason with its numbers."""
        return self.reason.format(**self.fields)


@dataclass(frozen=True)
class Report:
    """All findings, worst first, and statistics of the dataset.

    numbers   images, regularization (images), images_per_epoch (with repeats), steps_per_epoch, buckets, tags;
              empty if the dataset cannot be read
    samples   name -> training image
    """

    findings: tuple[DatasetFinding, ...]
    numbers: dict[str, int]
    samples: dict[str, Sample]

    def is_fine(self) -> bool:
        """Whether there are no errors; there may be warnings and tips."""
        return not any(finding.severity == "error" for finding in self.findings)

    def find(self, kind: str) -> DatasetFinding | None:
        """The finding of one check, or None."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def as_data(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        rows = [
            {"kind": f.kind, "severity": f.severity, "title": f.title, "why": f.why, "fix": f.fix}
            | {"images": list(f.images), "details": f.details}
            for f in self.findings
        ]
        return {"numbers": self.numbers, "findings": rows}
