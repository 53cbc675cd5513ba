"""`lorakit data check` and `lorakit data fix`: the dataset check in a terminal."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli.options import SET, default_settings, project_at, with_changes

if TYPE_CHECKING:
    from lorakit.data import DataConfig
    from lorakit.examine import Report
    from lorakit.project import Project

# In place of a finding's name.
RESTORE = "restore"
# Lines per finding.
SHOWN = 8
MARKS = {"error": "✗", "warning": "!", "tip": "·"}


def add(verbs: argparse._SubParsersAction) -> None:
    """Add both verbs to those of `lorakit data`."""
    what = "find problems of images and captions that harm training; exit code 1 if there are errors"
    check = verbs.add_parser("check", help=what, description=what)
    check.set_defaults(verb=_check)
    _of_project(check)
    check.add_argument("--json", action="store_true", help="print JSON")
    what = "apply the fix of a finding of `data check`; originals are never changed, and every fix can be undone"
    fix = verbs.add_parser("fix", help=what, description=what)
    fix.set_defaults(verb=_fix)
    _of_project(fix)
    fix.add_argument(
        "name",
        metavar="FINDING",
        help=f"as `data check` names it; {RESTORE!r} restores the files that were excluded last",
    )
    fix.add_argument("--answer", default="", help="for a fix that needs a choice, such as an encoding")


def _of_project(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, help="project folder; its images are in dataset/")
    parser.add_argument("--set", **SET, help="e.g. data.trigger=mofurin, model.family=sdxl")


def _check(options: argparse.Namespace) -> int:
    _, report = _examined(project_at(options.project), options.set)
    settings = [part for change in options.set for part in ("--set", change)]
    # The command for `fix` gets the same settings, quoted so that it can be pasted.
    fix_command = f"lorakit data fix {shlex.join([str(options.project), *settings])}"
    print(json.dumps(report.as_data(), ensure_ascii=False, indent=1) if options.json else _text(report, fix_command))
    return 0 if report.is_fine() else 1


def _fix(options: argparse.Namespace) -> int:
    from lorakit.errors import UserError
    from lorakit.examine.fixes import FIXES, apply_fix

    project = project_at(options.project)
    if options.name == RESTORE:
        return _restore(project)
    data, report = _examined(project, options.set)
    finding = report.find(options.name)
    if finding is None:
        fixable = ", ".join(f.kind for f in report.findings if f.fix) or "none"
        raise UserError(f"There is no finding {options.name!r} here; findings with a fix: {fixable}.")
    result = apply_fix(project, data, finding, options.answer)
    # 1 if something was left unchanged, so that scripts notice.
    print("\n".join([*result.kept, f"{FIXES[finding.fix].label}: {result.changed}"]))
    return int(bool(result.kept))


def _restore(project: Project) -> int:
    from lorakit.examine import excluded

    batches = excluded.batches(project)
    if not batches:
        print("No files are excluded.")
        return 0
    # The newest batch only, like an undo.
    problems = excluded.restore(project, batches[-1])
    print("\n".join([*problems, f"restored: {batches[-1].name}" * (not problems)]))
    return int(bool(problems))


def _examined(project: Project, changes: list[str]) -> tuple[DataConfig, Report]:
    """The data settings as a run of the chosen family would have them, and the report of the dataset."""
    from lorakit import models
    from lorakit.config import from_dict
    from lorakit.data import DataConfig
    from lorakit.examine import examine
    from lorakit.run.config import LoopConfig

    # Empty parts, for calls without --set.
    settings = with_changes({**default_settings(), "data": {}, "loop": {}}, changes)
    family = models.config_class(settings["model"]["family"])
    # The source may be empty: without a base model, caption lengths are not checked.
    model = from_dict(family, {"source": "", **settings["model"]}, "model.")
    data = from_dict(DataConfig, {**family.defaults.get("data", {}), **settings["data"]}, "data.")
    return data, examine(project, data, model, from_dict(LoopConfig, settings["loop"], "loop."))


def _text(report: Report, fix_command: str) -> str:
    """The report as lines: numbers, then each finding with its reason, some images, and the command that fixes it."""
    from lorakit.examine.fixes import FIXES

    numbers = (f"{name.replace('_', ' ')} {value}" for name, value in report.numbers.items())
    lines = ["   ".join(numbers)] if report.numbers else []
    for finding in report.findings:
        lines += ["", f"{MARKS[finding.severity]} {finding.title}   [{finding.kind}]", f"  {finding.why}"]
        # Details may have keys that are no images, such as folders and tags.
        names = list(dict.fromkeys([*finding.images, *finding.details]))
        lines += [f"    {name}  {finding.details.get(name, '')}".rstrip() for name in names[:SHOWN]]
        lines += [f"    and {len(names) - SHOWN} more"] * (len(names) > SHOWN)
        if finding.fix:
            likely = finding.fields.get("encoding", "ENCODING")
            answer = f" --answer {likely}" * bool(FIXES[finding.fix].answers)
            lines.append(f"  → {fix_command} {finding.kind}{answer}\n    {FIXES[finding.fix].help}")
    return "\n".join([*lines, "", _verdict(report)]).strip()


def _verdict(report: Report) -> str:
    """The number of findings by severity, e.g. "1 error · 7 warnings · 3 tips"."""
    if not report.findings:
        return "No problems found."
    counts = {severity: sum(f.severity == severity for f in report.findings) for severity in MARKS}
    return " · ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in counts.items() if count)
