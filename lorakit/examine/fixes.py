"""What can be done about a finding with one call; originals are never changed, and all of it can be taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.caption_sources import CaptionSources
from lorakit.data.captions import tags_of
from lorakit.data.image_stats import StatsCache
from lorakit.data.listing import Listing
from lorakit.data.scan import scan
from lorakit.errors import UserError
from lorakit.examine import examine, excluded
from lorakit.examine.finding import DatasetFinding
from lorakit.prepare.boxes import Box, Boxes
from lorakit.project import Project
from lorakit.tags.authors import DOCTOR, PERSON
from lorakit.tags.editor import CaptionEditor
from lorakit.tags.rules import Remove


@dataclass(frozen=True)
class FixResult:
    """What a fix did: how many files or captions it changed, and a sentence for each that stayed as it was."""

    changed: int
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fix:
    """One row: `apply(project, config, finding, answer)` does it.

    label      on a button; `help` says what happens and how it is taken back
    answers    what a person must choose first (`answer` is one of these); empty when nothing is asked
    """

    name: str
    label: str
    help: str
    apply: Callable[[Project, DataConfig, DatasetFinding, str], FixResult]
    answers: tuple[str, ...] = ()


# ---- files -----------------------------------------------------------------------------------------------------------


def _set_aside(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    """Only what is still found: files may have been mended, or the best of likenesses removed, since the report."""
    known, again = excluded.paths(project, config), examine(project, config).find(finding.kind)
    still = (again.targets or again.images) if again else ()
    wanted = [name for name in finding.targets or finding.images if name in known]
    names = [name for name in wanted if name in still]
    if not {sample.name for sample in scan(config, project.folder).samples if not sample.is_reg} - set(names):
        raise UserError("This would set all images aside, and nothing would be left to train on.")
    moved = excluded.exclude(project, config, finding.kind, [known[name] for name in names])
    changed = (name for name in wanted if name not in still)
    return FixResult(
        len(moved), tuple(f"{name}: something changed since it was examined; it stays." for name in changed)
    )


def _to_utf8(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    listing = Listing(excluded.editable_folder(project, config), config.repeats)
    told = CaptionSources(listing, config.caption_extension).captions
    files = {listing.name(image): caption.source for image, caption in told.items() if caption.error}
    texts: dict[Path, str] = {}
    kept = [f"{name}: its caption can be read now, and stays." for name in finding.images if name not in files]
    for name, file in ((name, files[name]) for name in finding.images if name in files):
        try:
            texts[file] = file.read_bytes().decode(answer)
        except UnicodeDecodeError:
            kept.append(f"{name}: its caption is not {answer}.")
        except OSError as error:
            kept.append(f"{name}: its caption cannot be read ({error.strerror}).")
    if texts:
        excluded.rewrite(project, config, finding.kind, texts)
    return FixResult(len(texts), tuple(kept))


def _crop_borders(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    """A box inside the border of each image that has no box yet."""
    known, boxes, drawn = excluded.paths(project, config), Boxes(project), {}
    names = {known[name]: name for name in finding.images if name in known and not boxes.of(name)}
    for path, look in StatsCache.of(project.folder).measure(names):
        left, top, right, bottom = look.border
        if not any(look.border):  # another image is there now
            continue
        drawn[names[path]] = (Box(left, top, look.width - left - right, look.height - top - bottom),)
    boxes.update(drawn)
    return FixResult(len(drawn))


# ---- captions: all through the caption editor, so that they can be undone --------------------------------------------


def _write_captions(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    editor = CaptionEditor(project, config)
    trained = {name: editor.samples[name].caption for name in finding.images if name in editor.samples}
    bare = {name: text for name, text in trained.items() if not editor.captions[name]}
    return _changed(editor, finding, bare, by=DOCTOR)


def _trigger_first(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    def first(caption: str) -> str:
        others = [tag for tag in tags_of(caption) if tag != config.trigger]
        return ", ".join([config.trigger, *others])

    return _each(CaptionEditor(project, config), finding, first)


def _ordinary_commas(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    def with_commas(caption: str) -> str:
        return ", ".join(tags_of(caption.replace("，", ",").replace("、", ",")))

    return _each(CaptionEditor(project, config), finding, with_commas)


def _absorb(project: Project, config: DataConfig, finding: DatasetFinding, answer: str) -> FixResult:
    rules = [Remove(tag, config.trigger) for tag in finding.details]

    def without(caption: str) -> str:
        for rule in rules:
            caption = rule.apply(caption)
        return caption

    editor = CaptionEditor(project, config)
    return _changed(editor, finding, {name: without(caption) for name, caption in editor.captions.items()})


def _each(editor: CaptionEditor, finding: DatasetFinding, change: Callable[[str], str]) -> FixResult:
    captions = {name: editor.captions[name] for name in finding.images if name in editor.captions}
    return _changed(editor, finding, {name: change(caption) for name, caption in captions.items() if caption})


def _changed(editor: CaptionEditor, finding: DatasetFinding, captions: dict[str, str], by: str = PERSON) -> FixResult:
    wanted = {name: text for name, text in captions.items() if text != editor.captions[name]}
    change = editor.change(FIXES[finding.fix].label, wanted, by)
    done = change.new.keys() | change.old.keys() if change else set()
    return FixResult(
        len(done), tuple(f"{name}: its caption stays as it is; look at its file." for name in wanted.keys() - done)
    )


ENCODINGS = ("utf-8", "gb18030", "big5", "cp932", "cp949", "cp1252", "cp1251", "utf-16")
SET_ASIDE = (
    "Moves these files, with their captions, into the project's set-aside/; from there they can be brought back."
)
UNDO = "The tag editor's undo takes it back."
ROWS = (
    Fix("set_aside", "set aside", SET_ASIDE, _set_aside),
    Fix(
        "to_utf8",
        "save as UTF-8",
        "Reads these caption files in the encoding that you choose and saves them as UTF-8; what they were is kept in "
        "the project's set-aside/.",
        _to_utf8,
        ENCODINGS,
    ),
    Fix(
        "crop_borders",
        "draw boxes",
        "Draws a box inside each border, by which the images are cropped when they are prepared; the files stay as "
        "they are.",
        _crop_borders,
    ),
    Fix("write_captions", "write captions", f"Writes down what the images are trained as. {UNDO}", _write_captions),
    Fix(
        "trigger_first",
        "trigger first",
        f"Writes the trigger as the first tag of these captions. {UNDO}",
        _trigger_first,
    ),
    Fix(
        "ordinary_commas",
        "ordinary commas",
        f"Writes ordinary commas between the tags of these captions. {UNDO}",
        _ordinary_commas,
    ),
    Fix("absorb", "take out of captions", f"Takes the tags below out of all captions. {UNDO}", _absorb),
)
FIXES = {fix.name: fix for fix in ROWS}


def apply_fix(project: Project, config: DataConfig, finding: DatasetFinding, answer: str = "") -> FixResult:
    """Do what a finding's fix does. Raises UserError when it has none, when `answer` is none of its `answers`, and for
    a disk that cannot be written.
    """
    if not finding.fix:
        raise UserError(f"There is no fix for {finding.kind!r} but by hand. {finding.why}")
    fix = FIXES[finding.fix]
    if fix.answers and answer not in fix.answers:
        raise UserError(f"{fix.label!r} must be told one of {', '.join(fix.answers)}; it was told {answer!r}.")
    try:
        return fix.apply(project, config, finding, answer)
    except OSError as error:  # a disk that is full or read-only
        raise UserError(
            f"{fix.label!r} stopped: {error}. What it did so far can be taken back; free some space, and do it again."
        ) from error
