"""What the examination of a dataset says: findings, each with its images, and the numbers of the whole set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lorakit.data.scan import Sample

SEVERITIES = ("wrong", "look", "tip")  # worst first


@dataclass(frozen=True)
class CheckResult:
    """What a check saw; without images and details it saw nothing.

    images   names of what it is about, as `Scan` spells them; those that belong together follow each other
    details    name of an image, or of a folder or tag -> what is to be said about that one
    targets    the names that a fix changes; empty: all of `images`
    fields     what goes into the sentences of the check's row, beside `n`, the number of images
    """

    images: tuple[str, ...] = ()
    details: dict[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetFinding(CheckResult):
    """One thing that was found.

    kind       the row of `CHECKS` that found it
    severity   "wrong": something is lost or broken; "look": a person should look at it; "tip": good to know
    text       what was found, and `reason` why it matters: sentences with `{fields}`, so that they can be translated;
               `title` and `why` are both in English
    fix        name of a row of `FIXES`, "" without
    """

    kind: str
    severity: str
    text: str
    reason: str
    fix: str = ""

    @property
    def title(self) -> str:
        return self.text.format(**self.fields)

    @property
    def why(self) -> str:
        return self.reason.format(**self.fields)


@dataclass(frozen=True)
class Report:
    """All findings, worst first, and the numbers of the set.

    numbers   images, images, regularization, images_per_epoch (with repeats), steps_per_epoch, buckets, tags;
              empty when the set cannot be read
    samples   name -> training image
    """

    findings: tuple[DatasetFinding, ...]
    numbers: dict[str, int]
    samples: dict[str, Sample]

    def is_fine(self) -> bool:
        """Whether nothing is wrong; there may be findings to look at."""
        return not any(finding.severity == "wrong" for finding in self.findings)

    def find(self, kind: str) -> DatasetFinding | None:
        """The finding of a kind, None when there is none."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def as_data(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        rows = [
            {"kind": f.kind, "severity": f.severity, "title": f.title, "why": f.why, "fix": f.fix}
            | {"images": list(f.images), "details": f.details}
            for f in self.findings
        ]
        return {"numbers": self.numbers, "findings": rows}
