"""Fixes for findings, one call each; originals are never changed, and every fix can be undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.caption_parts import is_sentence, parts_of, pieces_of, tags_of
from lorakit.data.captions import trigger_first
from lorakit.data.image_stats import StatsCache
from lorakit.data.scan import scan
from lorakit.errors import UserError
from lorakit.examine import examine, excluded, spelling
from lorakit.examine.encodings import ENCODINGS, unread_captions
from lorakit.examine.finding import DatasetFinding
from lorakit.prepare.boxes import Box, Boxes
from lorakit.project import Project
from lorakit.tags.authors import DOCTOR, PERSON
from lorakit.tags.editor import CaptionEditor
from lorakit.tags.rules import Remove, Rename


@dataclass(frozen=True)
class FixResult:
    """What a fix did: how many files or captions it changed, and a sentence for each that it left unchanged."""

    changed: int
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fix:
    """One row of the table of fixes: `apply(project, config, finding, answer)` does it.

    label      text of its button; `help` says what happens and how to undo it
    answers    choices for the user, one of which is `answer`; empty if there is nothing to choose
    """

    name: str
    label: str
    help: str
    apply: Callable[[Project, DataConfig, DatasetFinding, str], FixResult]
    answers: tuple[str, ...] = ()


# ---- files -----------------------------------------------------------------------------------------------------------


def _exclude(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    # The report may be old: a file may be fixed meanwhile, or the best of a group of duplicates removed. So check
    # again, and exclude only what is still found.
    files, current = excluded.paths(project, config), examine(project, config).find(finding.kind)
    still = (current.targets or current.images) if current else ()
    reported = [name for name in finding.targets or finding.images if name in files]
    names = [name for name in reported if name in still]
    # Regularization images alone are no dataset.
    if not {sample.name for sample in scan(config, project.folder).samples if not sample.is_reg} - set(names):
        raise UserError("This would exclude all images, and nothing would be left to train on.")
    moved = excluded.exclude(project, config, finding.kind, [files[name] for name in names])
    kept = (f"{name}: changed since the check, not excluded." for name in reported if name not in still)
    return FixResult(len(moved), tuple(kept))


def _to_utf8(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    unread = unread_captions(excluded.editable_folder(project, config), config)
    files = {name: caption.source for name, caption in unread.items()}
    texts: dict[Path, str] = {}
    kept = [f"{name}: its caption is readable now, not changed." for name in finding.images if name not in files]
    for name, file in ((name, files[name]) for name in finding.images if name in files):
        try:
            # Every file is decoded before the first one is written.
            texts[file] = file.read_bytes().decode(answer)
        except UnicodeDecodeError:
            kept.append(f"{name}: its caption is not {answer}.")
        except OSError as error:
            kept.append(f"{name}: its caption cannot be read ({error.strerror}).")
    if texts:
        excluded.rewrite(project, config, finding.kind, texts)
    return FixResult(len(texts), tuple(kept))


def _crop_borders(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    """Draw a box inside the border of each image that has no box yet."""
    files, boxes, drawn = excluded.paths(project, config), Boxes(project), {}
    # Boxes that a person drew are kept.
    names = {files[name]: name for name in finding.images if name in files and not boxes.of(name)}
    for path, stats in StatsCache.of(project.folder).measure(names):
        left, top, right, bottom = stats.border
        # Replaced by another image since the check.
        if not any(stats.border):
            continue
        drawn[names[path]] = (Box(left, top, stats.width - left - right, stats.height - top - bottom),)
    boxes.update(drawn)
    return FixResult(len(drawn))


# ---- captions: all through the caption editor, so that they can be undone --------------------------------------------


def _write_captions(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    editor = CaptionEditor(project, config)
    trained = {name: editor.samples[name].caption for name in finding.images if name in editor.samples}
    # Captions that were written since the check are kept.
    bare = {name: text for name, text in trained.items() if not editor.captions[name]}
    return _change(editor, finding, bare, by=DOCTOR)


def _trigger_first(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    editor = CaptionEditor(project, config)
    captions = {name: editor.captions[name] for name in finding.images if name in editor.captions}
    new = {name: trigger_first(text, editor.samples[name].trigger) for name, text in captions.items() if text}
    return _change(editor, finding, new)


def _ascii_commas(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    def with_ascii_commas(caption: str) -> str:
        parts = parts_of(caption)
        return ", ".join(part if is_sentence(part) else _parted(part) for part in parts)

    return _change_each(CaptionEditor(project, config), finding, with_ascii_commas)


def _parted(tags: str) -> str:
    return ", ".join(pieces_of(tags.replace("，", ",").replace("、", ",")))


def _plain_text(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    return _change_each(CaptionEditor(project, config), finding, spelling.without_syntax)


def _single_tags(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    return _change_each(CaptionEditor(project, config), finding, spelling.without_doubles)


def _one_spelling(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    editor = CaptionEditor(project, config)
    triggers = ", ".join({sample.trigger: "" for sample in editor.samples.values()})
    rules = [
        Rename(old, new) for old, new in spelling.one_spelling(map(tags_of, editor.captions.values()), triggers).items()
    ]

    def with_one_spelling(caption: str) -> str:
        for rule in rules:
            caption = rule.apply(caption)
        return caption

    return _change_each(editor, finding, with_one_spelling)


def _remove_listed(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    """Remove the tags that stand beside each image in the finding."""
    editor = CaptionEditor(project, config)
    listed = {name: tags_of(finding.details[name]) for name in finding.images if name in editor.captions}
    kept = {name: [tag for tag in tags_of(editor.captions[name]) if tag not in tags] for name, tags in listed.items()}
    return _change(editor, finding, {name: ", ".join(tags) for name, tags in kept.items()})


def _remove_tags(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    rules = [Remove(tag, config.trigger) for tag in finding.details]

    def without_tags(caption: str) -> str:
        for rule in rules:
            caption = rule.apply(caption)
        return caption

    editor = CaptionEditor(project, config)
    return _change(editor, finding, {name: without_tags(caption) for name, caption in editor.captions.items()})


def _change_each(editor: CaptionEditor, finding: DatasetFinding, change: Callable[[str], str]) -> FixResult:
    """Apply `change` to the captions of the finding's images."""
    captions = {name: editor.captions[name] for name in finding.images if name in editor.captions}
    return _change(editor, finding, {name: change(caption) for name, caption in captions.items() if caption})


def _change(editor: CaptionEditor, finding: DatasetFinding, captions: dict[str, str], by: str = PERSON) -> FixResult:
    """Write captions (image -> new caption) as one change that can be undone."""
    different = {name: text for name, text in captions.items() if text != editor.captions[name]}
    change = editor.change(FIXES[finding.fix].label, different, by)
    done = change.new.keys() | change.old.keys() if change else set()
    kept = (f"{name}: its caption was not changed; check its file." for name in different.keys() - done)
    return FixResult(len(done), tuple(kept))


UNDO = "Undo it in the tag editor."
ROWS = (
    Fix(
        "exclude",
        "Exclude from dataset",
        "Moves these files and their captions to the project's set-aside/ folder, from where they can be restored.",
        _exclude,
    ),
    Fix(
        "to_utf8",
        "Save as UTF-8",
        "Reads these caption files in the chosen encoding and saves them as UTF-8; the original files are kept in the "
        "project's set-aside/ folder.",
        _to_utf8,
        ENCODINGS,
    ),
    Fix(
        "crop_borders",
        "Draw crop boxes",
        "Draws a crop box inside each border, used when images are prepared; the files do not change.",
        _crop_borders,
    ),
    Fix(
        "write_captions",
        "Write captions",
        f"Saves the text that these images are trained with. {UNDO}",
        _write_captions,
    ),
    Fix(
        "trigger_first",
        "Move trigger word to front",
        f"Makes the trigger word the first tag of these captions. {UNDO}",
        _trigger_first,
    ),
    Fix(
        "ascii_commas",
        "Replace with ASCII commas",
        f"Separates the tags of these captions with ASCII commas. {UNDO}",
        _ascii_commas,
    ),
    Fix(
        "plain_text",
        "Remove prompt syntax",
        f"Removes weights, escapes, LoRA names, wildcards and pasted settings from these captions. {UNDO}",
        _plain_text,
    ),
    Fix("single_tags", "Remove doubled tags", f"Keeps the first of each tag in these captions. {UNDO}", _single_tags),
    Fix(
        "one_spelling",
        "Use one spelling",
        f"Spells each tag as most captions do, in all of these captions. {UNDO}",
        _one_spelling,
    ),
    Fix(
        "remove_listed",
        "Remove these tags",
        f"Removes the tags that are shown beside each image from its caption. {UNDO}",
        _remove_listed,
    ),
    Fix("remove_tags", "Remove these tags", f"Removes the tags below from all captions. {UNDO}", _remove_tags),
)
FIXES = {fix.name: fix for fix in ROWS}


def apply_fix(project: Project, config: DataConfig, finding: DatasetFinding, answer: str = "") -> FixResult:
    """Apply the fix of a finding. Raises UserError if it has none, if `answer` is not one of the fix's `answers`, and
    if the disk cannot be written.
    """
    if not finding.fix:
        raise UserError(f"{finding.kind!r} has no automatic fix. {finding.why}")
    fix = FIXES[finding.fix]
    if fix.answers and answer not in fix.answers:
        raise UserError(f"“{fix.label}” needs a choice: one of {', '.join(fix.answers)}; got {answer!r}.")
    try:
        return fix.apply(project, config, finding, answer)
    # A disk that is full or read-only.
    except OSError as error:
        raise UserError(
            f"“{fix.label}” stopped: {error}. What it did so far can be undone; free some space and repeat it."
        ) from error
