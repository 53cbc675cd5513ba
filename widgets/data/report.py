"""The report on a dataset in a cell: findings with their images, and a button for each that can be fixed."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from dataclasses import fields
from textwrap import shorten

import ipywidgets

from lorakit import models
from lorakit.config import Config
from lorakit.data import DataConfig
from lorakit.errors import UserError
from lorakit.examine import DatasetFinding, Report, examine, measure_images
from lorakit.examine.excluded import Batch, batches, restore
from lorakit.examine.fixes import FIXES, FixResult, apply_fix
from lorakit.project import Project
from lorakit.run.config import LoopConfig
from lorakit.sync import service
from widgets.data.thumbnails import Thumbnails
from widgets.i18n import say
from widgets.page import AMBER, BLUE, GREEN, GREY, RED, aside, bar, box, facts
from widgets.plain import show
from widgets.project.draft import Draft
from widgets.project.labels import labelled

# Px of a thumbnail; thumbnails of a finding, and its lines without one, at most.
SIDE, SHOWN, LINES = 80, 6, 12
MOST = 160  # characters below a thumbnail
REDRAW = 1.0  # s
COLOURS = {"error": RED, "warning": AMBER, "tip": BLUE}


def check_dataset(project: Project) -> None:
    """Check a project's dataset: show errors, warnings and tips, with buttons that fix them."""

    view = Examination(project)
    show(view.widget)
    view.examine()


class Examination:
    """The report: `widget` is to be displayed, `examine` fills it. What was done is on disk, nothing is kept here."""

    def __init__(self, project: Project):
        self.project = project
        self.thumbnails = Thumbnails(project)
        self.head, self.status = ipywidgets.HTML(), ipywidgets.HTML()
        self.rows, self.excluded = ipywidgets.VBox(), ipywidgets.VBox()
        recheck = _button(say("Re-check"), "refresh", self.examine)
        self.widget = ipywidgets.VBox(
            [self.head, self.status, _line([recheck]), self.rows, self.excluded],
            layout=ipywidgets.Layout(width="100%", max_width="960px"),
        )

    def examine(self) -> None:
        """Check the dataset with the settings chosen for the next run."""
        self.config, model, loop = _chosen(self.project)
        drawn = time.monotonic()
        for progress in measure_images(self.project, self.config):
            if time.monotonic() - drawn > REDRAW:
                text = say("checking images: {done} of {total}", done=progress.done, total=progress.total)
                self.head.value = aside(text) + bar(progress.done / progress.total)
                drawn = time.monotonic()
        self._draw(examine(self.project, self.config, model, loop))

    def _draw(self, report: Report) -> None:
        self.head.value = _numbers(report) + _verdict(report)
        self.rows.children = [self._row(finding, report) for finding in report.findings]
        # The newest batch first.
        self.excluded.children = [self._batch(batch) for batch in reversed(batches(self.project))]

    def _row(self, finding: DatasetFinding, report: Report) -> ipywidgets.Widget:
        """One finding, folded, with its button beside it."""
        html_view = ipywidgets.HTML(self._details(finding, report), layout=ipywidgets.Layout(flex="1 1 180px"))
        if not finding.fix:
            return _line([html_view])
        fix = FIXES[finding.fix]
        # Some fixes need an answer of the user, such as the encoding of a caption file.
        answer = ipywidgets.Dropdown(options=fix.answers, layout=ipywidgets.Layout(width="110px"))
        if (likely := finding.fields.get("encoding")) in fix.answers:
            answer.value = likely
        button = _button(
            say(fix.label),
            "",
            lambda: self._do(fix.label, lambda: apply_fix(self.project, self.config, finding, answer.value or "")),
        )
        button.tooltip = say(fix.help)
        return _line([html_view, *([answer] if fix.answers else []), button])

    def _batch(self, batch: Batch) -> ipywidgets.Widget:
        """Excluded files, with a button that restores them."""
        text = say("{n} files excluded, kept in {folder}", folder=f"set-aside/{batch.name}", n=len(batch.files))
        line = ipywidgets.HTML(
            f'<span style="color:{GREY};font-size:13px">{html.escape(text)}</span>',
            layout=ipywidgets.Layout(flex="1 1 180px"),
        )
        return _line([line, _button(say("Restore"), "undo", lambda: self._do("Restore", lambda: self._restore(batch)))])

    def _restore(self, batch: Batch) -> FixResult:
        not_restored = restore(self.project, batch)
        return FixResult(len(batch.files) - len(not_restored), tuple(not_restored))

    def _do(self, label: str, action: Callable[[], FixResult]) -> None:
        """Apply a fix, show its result, and check again."""
        try:
            result = action()
        except (UserError, OSError) as error:
            # OSError: a disk that is full or read-only.
            self.status.value = box(labelled(str(error)), RED)
            return
        notes = list(result.kept[:LINES])
        if len(result.kept) > LINES:
            notes.append(say("and {n} more", n=len(result.kept) - LINES))
        self.status.value = box(
            "\n".join([say("Done: {what}, {n}.", what=say(label), n=result.changed), *notes]), AMBER if notes else GREEN
        )
        service.start(self.project)
        self.examine()

    def _details(self, finding: DatasetFinding, report: Report) -> str:
        """One finding as HTML: what, and unfolded why, its images, and what its button does."""
        title, why = say(finding.text, **finding.fields), say(finding.reason, **finding.fields)
        help = f" <i>{html.escape(say(FIXES[finding.fix].help))}</i>" if finding.fix else ""
        # A name can be in both; the order is the finding's.
        names = list(dict.fromkeys([*finding.images, *finding.details]))
        # Names of images get a thumbnail; names of files that cannot be opened, and of tags, get a line.
        images = [name for name in names if name in report.samples][:SHOWN]
        lines = [name for name in names if name not in report.samples][:LINES]
        sources = self.thumbnails.sources([report.samples[name] for name in images], SIDE)
        cards = "".join(
            _card(name, finding.details.get(name, ""), source) for name, source in zip(images, sources, strict=True)
        )
        listed = "".join(_listed(name, finding.details.get(name, "")) for name in lines)
        hidden = len(names) - len(images) - len(lines)
        more = f'<div style="color:{GREY}">{html.escape(say("and {n} more", n=hidden))}</div>' if hidden else ""
        return (
            f'<details style="line-height:1.5;padding:3px 0"><summary style="cursor:pointer">'
            f'<span style="color:{COLOURS[finding.severity]}">●</span> {html.escape(title)}</summary>'
            f'<div style="margin:4px 0 8px 18px;font-size:13px">{html.escape(why)}{help}'
            f'<div style="display:flex;flex-wrap:wrap;gap:10px;margin:8px 0">{cards}</div>'
            f"{listed}{more}</div></details>"
        )


def _chosen(project: Project) -> tuple[DataConfig, Config | None, LoopConfig]:
    """What is chosen for the next run: data, base model (None while none is named) and loop."""
    shown = Draft(project).shown

    def values(owner: str, config: type[Config]) -> dict:
        return {f.name: shown[f"{owner}.{f.name}"] for f in fields(config) if f"{owner}.{f.name}" in shown}

    family = models.config_class(Draft(project).choice.family)
    model = family(**{"source": "", **values("model", family)})
    return DataConfig(**values("data", DataConfig)), model, LoopConfig(**values("loop", LoopConfig))


def _numbers(report: Report) -> str:
    """The dataset in a line: images, images per epoch, steps, buckets, tags."""
    if not report.numbers:
        return ""
    n = report.numbers
    lines = [say("{n} images", n=n["images"])]
    lines += [say("{n} regularization images", n=n["regularization"])] if n["regularization"] else []
    lines += [
        say("{n} images per epoch (with repeats)", n=n["images_per_epoch"]),
        say("{n} steps per epoch", n=n["steps_per_epoch"]),
        say("{n} buckets", n=n["buckets"]),
        say("{n} tags", n=n["tags"]),
    ]
    return facts(lines)


def _verdict(report: Report) -> str:
    count = {severity: sum(f.severity == severity for f in report.findings) for severity in COLOURS}
    if not report.findings:
        return box(say("No problems found."), GREEN)
    names = {
        "error": say("1 error") if count["error"] == 1 else say("{n} errors", n=count["error"]),
        "warning": say("1 warning") if count["warning"] == 1 else say("{n} warnings", n=count["warning"]),
        "tip": say("1 tip") if count["tip"] == 1 else say("{n} tips", n=count["tip"]),
    }
    worst = next(severity for severity in COLOURS if count[severity])
    return box(" · ".join(names[severity] for severity in COLOURS if count[severity]), COLOURS[worst])


def _card(name: str, detail: str, source: str) -> str:
    """A thumbnail with its name and a detail."""
    image = f'<img src="{source}" style="max-width:{SIDE}px;max-height:{SIDE}px;border-radius:3px">' if source else ""
    text = f'<div style="color:{GREY}">{html.escape(shorten(detail, MOST, placeholder=" …"))}</div>' if detail else ""
    return (
        f'<div style="width:132px;font-size:11px;line-height:1.35;overflow-wrap:anywhere">{image}'
        f"<div>{html.escape(name)}</div>{text}</div>"
    )


def _listed(name: str, detail: str) -> str:
    text = f' <span style="color:{GREY}">{html.escape(detail)}</span>' if detail else ""
    return f'<div style="font-size:12px;overflow-wrap:anywhere">{html.escape(name)}{text}</div>'


def _button(label: str, icon: str, do: Callable[[], None]) -> ipywidgets.Button:
    button = ipywidgets.Button(description=label, icon=icon, layout=ipywidgets.Layout(width="auto"))
    button.on_click(lambda _: do())
    return button


def _line(children: list[ipywidgets.Widget]) -> ipywidgets.Box:
    return ipywidgets.Box(
        children,
        layout=ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start", width="100%", min_height="32px"),
    )
