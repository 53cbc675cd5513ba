"""The summary of an open project: where it is, what it contains, and what needs fixing on this machine."""

from __future__ import annotations

import html
from collections.abc import Iterable

from lorakit.data.images import EXTENSIONS
from lorakit.doctor import CheckResult
from lorakit.project import Project
from lorakit.project.platforms import Place
from lorakit.sync import service
from lorakit.training.status import RunStatus, project_status
from widgets import page
from widgets.i18n import say


def render(project: Project, place: Place, findings: Iterable[CheckResult], warnings: Iterable[str] = ()) -> str:
    """The summary as HTML: problems with their fixes visible, passed checks folded into one line."""
    findings = list(findings)
    alarms = [*warnings, *([say(place.keeps)] if place.is_lost else [])]
    pieces = [
        f'<div style="font-size:18px;font-weight:bold">{html.escape(_name(project))}</div>',
        _where(project, place),
        _contents(project),
        _others(project, place),
        *(page.box(text, page.AMBER) for text in alarms),
        *(_problem(finding) for finding in findings if finding.fix),
        _passed([finding for finding in findings if not finding.fix]),
        _left_out(project),
    ]
    return f'<div style="max-width:{page.WIDTH}px;line-height:1.6;overflow-wrap:anywhere">{"".join(pieces)}</div>'


def _name(project: Project) -> str:
    return (project.remote or project.folder).name


def _where(project: Project, place: Place) -> str:
    if project.remote is None:
        text = say("in {folder}", folder=project.folder)
    else:
        text = say("remote copy: {remote} · local folder: {folder}", remote=project.remote, folder=project.folder)
    return page.aside(f"{text} · {say(place.keeps)}" if place.keeps and not place.is_lost else text)


def _contents(project: Project) -> str:
    """Images and runs, a line for each run."""
    # Regularization images are not counted: they show other subjects.
    reg = project.dataset / "reg"
    files = [file for file in project.dataset.rglob("*") if file.suffix.lower() in EXTENSIONS]
    count = sum(reg not in file.parents for file in files)
    target = (project.remote or project.folder) / "dataset"
    text = say("{n} images", n=count) if count else say("No images yet: put them into {folder}", folder=target)
    runs = [_state(run) for run in project_status(project)]
    lines = [text, *runs] if runs else [f"{text} · {say('no runs yet')}"]
    return f'<div style="margin:6px 0">{"".join(f"<div>{html.escape(line)}</div>" for line in lines)}</div>'


def _state(run: RunStatus) -> str:
    states = {
        "new": say("not started"),
        "running": say("running"),
        "stopped": say("stopped"),
        "finished": say("finished"),
        "failed": say("failed"),
        "cut": say("interrupted"),
    }
    # Before the first session nobody has counted the steps.
    if not run.steps:
        return say("{name}: {state}", name=run.name, state=states[run.state])
    values = {"name": run.name, "state": states[run.state], "step": run.step, "steps": run.steps}
    return say("{name}: {state}, step {step} of {steps}", **values)


def _others(project: Project, place: Place) -> str:
    others = [name for name in place.projects() if name != _name(project)]
    if not others:
        return ""
    example = f'open_project("{others[0]}")'
    return page.aside(say("Other projects here: {names}. Open one with {code}.", names=", ".join(others), code=example))


def _problem(finding: CheckResult) -> str:
    text = say("{what}: {found}", what=say(finding.name), found=say(finding.text, **finding.fields))
    return (
        f'<div style="margin:6px 0"><span style="color:{page.AMBER};font-weight:bold">⚠ {html.escape(text)}</span> — '
        f"{html.escape(say(finding.remedy, **finding.fields))}</div>"
    )


def _left_out(project: Project) -> str:
    """Files that the remote copy will not get, folded: they do not affect training."""
    standing = service.standing(project)
    if standing is None or not standing.notes:
        return ""
    lines = "".join(f"<div>{html.escape(note)}</div>" for note in standing.notes)
    title = say("{n} notes on the remote copy in {remote}", n=len(standing.notes), remote=project.remote)
    return (
        f'<details style="margin:6px 0"><summary style="cursor:pointer">{html.escape(title)}</summary>'
        f'<div style="font-size:12px;margin:4px 0 0 16px">{lines}</div></details>'
    )


def _passed(findings: list[CheckResult]) -> str:
    left = "text-align:left;vertical-align:baseline"
    rows = "".join(
        f'<tr><td style="{left};white-space:nowrap;padding:1px 16px 1px 0">{html.escape(say(each.name))}</td>'
        f'<td style="{left};padding:1px 0">{html.escape(say(each.text, **each.fields))}</td></tr>'
        for each in findings
    )
    return (
        f'<details style="margin:6px 0"><summary style="cursor:pointer">✓ '
        f"{html.escape(say('{n} checks passed', n=len(findings)))}</summary>"
        f'<table style="font-size:12px;margin:4px 0 0 16px">{rows}</table></details>'
    )
