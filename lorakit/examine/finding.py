"""What the examination of a data set says: findings, each with its pictures, and the numbers of the whole set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SEVERITIES = ("wrong", "look", "tip")  # worst first


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    kind       the row of `CHECKS` that found it
    severity   "wrong": something is lost or broken; "look": a person should look at it; "tip": good to know
    text       what was found, and `reason` why it matters: sentences with `{fields}`, so that they can be translated;
               `title` and `why` are both in English
    pictures   names of what it is about, as `Scan` spells them; those that belong together follow each other
    details    name -> what is to be said about that one
    fix        name of a row of `FIXES`, "" without
    targets    the names that the fix changes; empty: all of `pictures`
    """

    kind: str
    severity: str
    text: str
    reason: str
    pictures: tuple[str, ...] = ()
    details: dict[str, str] = field(default_factory=dict)
    fix: str = ""
    targets: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.text.format(**self.fields) if self.fields else self.text

    @property
    def why(self) -> str:
        return self.reason.format(**self.fields) if self.fields else self.reason


@dataclass(frozen=True)
class Report:
    """All findings, worst first, and the numbers of the set.

    numbers   pictures, seen (in an epoch, repeats counted), regularization, captions, tags, buckets, steps (an epoch);
              empty when the set cannot be read
    """

    findings: tuple[Finding, ...]
    numbers: dict[str, int]

    def is_fine(self) -> bool:
        """Whether nothing is wrong; there may be findings to look at."""
        return not any(finding.severity == "wrong" for finding in self.findings)

    def find(self, kind: str) -> Finding | None:
        """The finding of a kind, None when there is none."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def as_data(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        rows = [
            {"kind": f.kind, "severity": f.severity, "title": f.title, "why": f.why, "fix": f.fix}
            | {"pictures": list(f.pictures), "details": f.details}
            for f in self.findings
        ]
        return {"numbers": dict(self.numbers), "findings": rows}
