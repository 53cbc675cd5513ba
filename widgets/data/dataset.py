"""A dataset in a cell: its images and its tags."""

from __future__ import annotations

import html
from dataclasses import fields
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.caption_parts import tags_of
from lorakit.data.listing import NOTE_KINDS, Note
from lorakit.data.scan import Sample, Scan, scan
from lorakit.project import Project
from widgets.data.prepare import notes_html
from widgets.i18n import say
from widgets.page import AMBER, aside, box
from widgets.project.draft import Draft
from widgets.project.labels import labelled

# Images on the sheet, images in a row, width of the sheet in px.
SHOWN, COLUMNS, WIDTH = 42, 7, 840
TAGS, CAPTIONS = 80, 8  # lines of each at most


def show_images(project: Project) -> None:
    """Show the training images: how many there are, a sheet of them, and what is left out and why."""
    from IPython.display import HTML, display

    from lorakit.generation import contact_sheet

    config = _config(project)
    scanned = _scanned(config, project)
    if scanned is None:
        return
    display(HTML(_counts(scanned)))
    files = [sample.path for sample in scanned.samples if not sample.is_reg]
    # Of many images every nth, so that all folders are on the sheet.
    step = max(1, len(files) // SHOWN)
    # One image in the output, not 42: it is saved with the notebook.
    display(contact_sheet.sheet(files[::step][:SHOWN], columns=COLUMNS, width=WIDTH))
    display(HTML(_notes(scanned.notes)))


def show_tags(project: Project) -> None:
    """Show the tags and how many images have each, some captions, and which images have none."""
    from IPython.display import HTML, display

    config = _config(project)
    scanned = _scanned(config, project)
    if scanned is not None:
        display(HTML(_tag_table(scanned) + _captions(scanned, config.trigger)))


def _config(project: Project) -> DataConfig:
    """The data settings that are chosen for the project's next run."""
    chosen = Draft(project).shown
    return DataConfig(**{f.name: chosen[f"data.{f.name}"] for f in fields(DataConfig) if f"data.{f.name}" in chosen})


def _scanned(config: DataConfig, project: Project) -> Scan | None:
    """The scan, or None after saying what is wrong with the dataset."""
    from IPython.display import HTML, display

    from lorakit.data.scan import DataError

    try:
        return scan(config, project.folder)
    except DataError as error:
        display(HTML(box(labelled(str(error)), AMBER)))
        return None


def _counts(scanned: Scan) -> str:
    """A row for each folder: images, repeats, and images per epoch."""
    folders: dict[str, list[Sample]] = {}
    for sample in scanned.samples:
        folders.setdefault(str(Path(sample.name).parent), []).append(sample)
    rows = "".join(
        f"<tr>{_cell(name if name != '.' else '')}{_cell(len(samples))}{_cell(f'× {samples[0].repeats}')}"
        f"{_cell(sum(sample.repeats for sample in samples))}"
        f"{_cell(say('regularization') if samples[0].is_reg else '')}</tr>"
        for name, samples in folders.items()
    )
    return _table(_heads(say("folder"), say("images"), say("Repeats"), say("images per epoch"), ""), rows)


def _heads(*heads: str) -> str:
    return "".join(f"<th style='text-align:left;padding:2px 14px 2px 0'>{head}</th>" for head in heads)


def _cell(text: object) -> str:
    return f"<td style='text-align:left;padding:2px 14px 2px 0'>{html.escape(str(text))}</td>"


def _table(heads: str, rows: str) -> str:
    return f"<table style='border-collapse:collapse;font-size:13px'><tr>{heads}</tr>{rows}</table>"


def _notes(notes: tuple[Note, ...]) -> str:
    # NOTE_KINDS begins with images that are left out.
    ordered = sorted(notes, key=lambda note: NOTE_KINDS.index(note.kind))
    return notes_html([str(note) for note in ordered]) or aside(say("Every file is used."))


def _tag_table(scanned: Scan) -> str:
    """Each tag as a pill with its count, the most frequent first."""
    counts = scanned.tag_frequency()
    pills = "".join(
        f"<span style='display:inline-block;border:1px solid #8886;border-radius:10px;padding:1px 8px;margin:2px'>"
        f"{html.escape(name)} <b>{count}</b></span>"
        for name, count in list(counts.items())[:TAGS]
    )
    text = say("{tags} tags in {images} images", tags=len(counts), images=_trained(scanned))
    more = say("and {n} more", n=len(counts) - TAGS) if len(counts) > TAGS else ""
    return f"<div style='font-size:13px;max-width:{WIDTH}px'><b>{text}</b><div>{pills}{more}</div></div>"


def _trained(scanned: Scan) -> int:
    return sum(not sample.is_reg for sample in scanned.samples)


def _begins_with(caption: str, trigger: str) -> bool:
    """Whether the trigger word stands in front, or in a sentence as one of its words."""
    triggers, tags = tags_of(trigger), tags_of(caption)
    return tags[: len(triggers)] == triggers or not {*triggers} & {*tags}


def _captions(scanned: Scan, trigger: str) -> str:
    """Some captions as they are trained, and how many images have none or lack the trigger."""
    samples = [sample for sample in scanned.samples if not sample.is_reg]
    uncaptioned = sum(not sample.is_captioned for sample in samples)
    late = sum(bool(s.trigger) and not _begins_with(s.caption, s.trigger) for s in samples)
    texts = [say("Every image has a caption.")]
    if uncaptioned:
        texts = [say("Images without a caption: {n}.", n=uncaptioned)]
    if late:
        texts.append(say("Captions that do not begin with the trigger word {trigger}: {n}.", n=late, trigger=trigger))
    rows = "".join(f"<tr>{_cell(sample.name)}{_cell(sample.caption)}</tr>" for sample in samples[:CAPTIONS])
    heads = _heads(say("image"), say("caption"))
    return f"<p style='font-size:13px'>{html.escape(' '.join(texts))}</p>" + _table(heads, rows)
