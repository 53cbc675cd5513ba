"""`lorakit data check` and `lorakit data fix`: the dataset's doctor in a terminal."""

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

RESTORE = "restore"
SHOWN = 8  # images of a finding that are listed
MARKS = {"wrong": "✗", "look": "!", "tip": "·"}


def add(verbs: argparse._SubParsersAction) -> None:
    """Add both verbs to those of `lorakit data`."""
    what = "everything about images and captions that spoils training, with a way to mend it; 1 if something is wrong"
    check = verbs.add_parser("check", help=what, description=what)
    check.set_defaults(verb=_check)
    _of_project(check)
    check.add_argument("--json", action="store_true", help="machine-readable")
    what = "do what `data check` offers for a finding; originals are never changed, and all of it can be taken back"
    fix = verbs.add_parser("fix", help=what, description=what)
    fix.set_defaults(verb=_fix)
    _of_project(fix)
    fix.add_argument(
        "name", metavar="FINDING", help=f"as `data check` names it; {RESTORE!r} brings back what was set aside last"
    )
    fix.add_argument("--answer", default="", help="where a fix asks for something, such as an encoding")


def _of_project(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, help="project folder; its images are in dataset/")
    parser.add_argument("--set", **SET, help="e.g. data.trigger=mofurin, model.family=sdxl")


def _check(options: argparse.Namespace) -> int:
    _, report = _examined(project_at(options.project), options.set)
    settings = [part for change in options.set for part in ("--set", change)]
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
        there = ", ".join(f.kind for f in report.findings if f.fix) or "none"
        raise UserError(f"There is no finding {options.name!r} here; those with a fix are: {there}.")
    done = apply_fix(project, data, finding, options.answer)
    print("\n".join([*done.kept, f"{FIXES[finding.fix].label}: {done.changed}"]))
    return int(bool(done.kept))


def _restore(project: Project) -> int:
    from lorakit.examine import excluded

    held = excluded.batches(project)
    if not held:
        print("Nothing is set aside.")
        return 0
    kept = excluded.restore(project, held[-1])
    print("\n".join([*kept, f"brought back: {held[-1].name}" * (not kept)]))
    return int(bool(kept))


def _examined(project: Project, changes: list[str]) -> tuple[DataConfig, Report]:
    """The report of a project with settings as a run of the family would have them."""
    from lorakit import models
    from lorakit.config import from_dict
    from lorakit.data import DataConfig
    from lorakit.examine import examine
    from lorakit.run.config import LoopConfig

    settings = with_changes({**default_settings(), "data": {}, "loop": {}}, changes)
    family = models.config_class(settings["model"]["family"])
    model = from_dict(family, {"source": "", **settings["model"]}, "model.")
    data = from_dict(DataConfig, {**family.defaults.get("data", {}), **settings["data"]}, "data.")
    return data, examine(project, data, model, from_dict(LoopConfig, settings["loop"], "loop."))


def _text(report: Report, fix_command: str) -> str:
    """The report as lines: numbers, then each finding with why, some images, and its fix as a command."""
    from lorakit.examine.fixes import FIXES

    lines = ["   ".join(f"{name} {value}" for name, value in report.numbers.items())] if report.numbers else []
    for finding in report.findings:
        lines += ["", f"{MARKS[finding.severity]} {finding.title}   [{finding.kind}]", f"  {finding.why}"]
        names = list(dict.fromkeys([*finding.images, *finding.details]))
        lines += [f"    {name}  {finding.details.get(name, '')}".rstrip() for name in names[:SHOWN]]
        lines += [f"    and {len(names) - SHOWN} more"] * (len(names) > SHOWN)
        if finding.fix:
            asks = " --answer ENCODING" * bool(FIXES[finding.fix].answers)
            lines.append(f"  → {fix_command} {finding.kind}{asks}\n    {FIXES[finding.fix].help}")
    return "\n".join([*lines, "", _verdict(report)]).strip()


def _verdict(report: Report) -> str:
    counts = {severity: sum(f.severity == severity for f in report.findings) for severity in MARKS}
    if not report.findings:
        return "Nothing was found that spoils training."
    return f"{counts['wrong']} wrong, {counts['look']} to look at, {counts['tip']} tips"
