"""`lorakit tag`: captions from taggers, the table of tags, edits of many captions, undo and locks, in a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli.options import SET, project_at, refuse_rest, with_changes

if TYPE_CHECKING:
    from lorakit.data import DataConfig
    from lorakit.project import Project
    from lorakit.tags.editor import CaptionEditor
    from lorakit.tags.edits import Change
    from lorakit.tags.rules import Rule

# Skipped images that are named in a message.
SHOWN = 8
# One in so many lines of progress is printed.
EVERY = 10


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the verbs of `lorakit tag`."""
    project = argparse.ArgumentParser(add_help=False)
    project.add_argument("project", type=Path, help="project folder; its images are in dataset/")
    project.add_argument("--set", **SET, help="e.g. data.trigger=mofurin, data.folder=prepared")
    selection = argparse.ArgumentParser(add_help=False, parents=[project])
    selection.add_argument("--with", dest="having", default="", metavar="TAG", help="only images that have this tag")
    selection.add_argument("--images", default="*", metavar="GLOB", help="only these images, e.g. '10_mofurin/*'")

    def verb(name: str, do: Callable, help: str, parent: argparse.ArgumentParser = project) -> argparse.ArgumentParser:
        parser = verbs.add_parser(name, help=help, description=help, parents=[parent])
        parser.set_defaults(verb=do)
        return parser

    run = verb("run", _run, "write captions with a tagger; keeps hand-written ones; run it again to continue")
    run.add_argument(
        "--tagger",
        default="",
        help="wd14 (tags), vlm or server (sentences); its settings are --set tagger.…, e.g. tagger.source=owner/name",
    )
    show = verb("show", _show, "list all tags with the number of images that have them, rarest first", selection)
    show.add_argument("--who", action="store_true", help="list the images instead, with the author of each tag")
    _add_edit(verb("edit", _edit, "edit many captions at once; patterns such as '* footwear' work too", selection))
    verb("undo", _undo, "undo the newest change")
    verb("redo", _redo, "redo the change that was undone last")
    verb("history", _history, "list all changes, oldest first")
    verb("lock", _lock, "lock captions: taggers do not write them", selection)
    verb("unlock", _unlock, "let taggers write captions that are hand-written or locked", selection)
    verb("diff", _diff, "show all changes since the captions were first read, as a unified diff")


def _add_edit(edit: argparse.ArgumentParser) -> None:
    # One action per call, so that each is one change that `undo` takes back.
    actions = edit.add_mutually_exclusive_group(required=True)
    actions.add_argument("--add", metavar="TAG", help="append to captions without it")
    actions.add_argument("--add-first", metavar="TAG", help="insert after the trigger word, in captions without it")
    actions.add_argument("--remove", metavar="TAG", help="from all of them")
    actions.add_argument("--rename", nargs=2, metavar=("OLD", "NEW"), help="replace a tag by another")
    actions.add_argument("--merge", nargs="+", metavar="TAG", help="replace all of these tags by the last one")


def _run(options: argparse.Namespace) -> int:
    from lorakit import taggers
    from lorakit.config import from_dict, to_dict
    from lorakit.tags.tagging import TaggingConfig, read_tagging, tag, write_tagging

    project = project_at(options.project)
    # Settings of the last call are the defaults of the next one.
    name, settings, config = read_tagging(project, options.tagger)
    changed = with_changes({"tagger": settings, "tagging": to_dict(config)}, options.set)
    config = from_dict(TaggingConfig, changed.pop("tagging"), "tagging.")
    settings = changed.pop("tagger")
    data = _data(changed)
    # checked before it is stored, and before a model is downloaded
    sound = to_dict(from_dict(taggers.config_class(name), settings, "tagger."))
    settings = {setting: sound[setting] for setting in settings}
    write_tagging(project, name, settings, config)
    for event in tag(project, data, taggers.load(name, settings), config):
        if event.what == "captions" or event.done == event.total or event.done % EVERY == 0:
            print(f"{event.what}: {event.done} of {event.total}", flush=True)
    editor = _opened(project, data)
    if locked := sum(map(editor.is_locked, editor.samples)):
        print(f"captions kept (hand-written or locked): {locked}; `lorakit tag unlock` lets taggers write them")
    return 0


def _show(options: argparse.Namespace) -> int:
    from lorakit.tags.editor import tag_counts

    editor, names = _selected(options)
    if not options.who:
        for tag, count in tag_counts(editor.captions[name] for name in names).items():
            print(f"{count:5}  {tag}")
    for name in names if options.who else ():
        # The author is shown for tags of taggers and fixes only.
        tags = ", ".join(tag if by == "person" else f"{tag} ({by})" for tag, by in editor.authors(name).items())
        print(f"{name}{' [locked]' * editor.is_locked(name)}: {tags}")
    return 0


def _edit(options: argparse.Namespace) -> int:
    editor, names = _selected(options)
    what, rule = _rule(options, _settings(options).trigger)
    _print_change(editor.change(what, {name: rule.apply(editor.captions[name]) for name in names}))
    return 0


def _rule(options: argparse.Namespace, trigger: str) -> tuple[str, Rule]:
    """A description of the edit, and the rule that makes it."""
    from lorakit.errors import UserError
    from lorakit.tags.rules import Add, Merge, Remove, Rename

    if options.add is not None:
        return f"add {options.add}", Add(options.add)
    if options.add_first is not None:
        return f"add {options.add_first}", Add(options.add_first, "start", trigger)
    if options.remove is not None:
        return f"remove {options.remove}", Remove(options.remove, trigger)
    if options.rename is not None:
        old, new = options.rename
        return f"rename {old} to {new}", Rename(old, new, trigger)
    *tags, into = options.merge
    if not tags:
        raise UserError("--merge needs at least two tags, such as --merge boots 'red footwear' 'red boots'.")
    return f"merge {', '.join(tags)} into {into}", Merge(tuple(tags), into, trigger)


def _undo(options: argparse.Namespace) -> int:
    _print_change(_editor(options).undo())
    return 0


def _redo(options: argparse.Namespace) -> int:
    _print_change(_editor(options).redo())
    return 0


def _lock(options: argparse.Namespace) -> int:
    editor, names = _selected(options)
    _print_change(editor.lock(names))
    return 0


def _unlock(options: argparse.Namespace) -> int:
    editor, names = _selected(options)
    _print_change(editor.unlock(names))
    return 0


def _history(options: argparse.Namespace) -> int:
    for change in _editor(options).history():
        print(f"{change.number:5}  {change.at}  {_summary(change)}")
    return 0


def _diff(options: argparse.Namespace) -> int:
    # A diff ends with a newline already.
    print(_editor(options).diff(), end="")
    return 0


def _settings(options: argparse.Namespace) -> DataConfig:
    return _data(with_changes({}, options.set))


def _data(settings: dict) -> DataConfig:
    from lorakit.config import from_dict
    from lorakit.data import DataConfig

    data = settings.pop("data", {})
    refuse_rest(settings, "data, e.g. data.trigger=mofurin")
    return from_dict(DataConfig, data, "data.")


def _editor(options: argparse.Namespace) -> CaptionEditor:
    return _opened(project_at(options.project), _settings(options))


def _opened(project: Project, data: DataConfig) -> CaptionEditor:
    """The captions of a dataset, after a line about each image that is missing in them."""
    from lorakit.tags.editor import CaptionEditor

    editor = CaptionEditor(project, data)
    for note in editor.left_out:
        print(f"! {note}", file=sys.stderr)
    return editor


def _selected(options: argparse.Namespace) -> tuple[CaptionEditor, list[str]]:
    """The editor, and the names of the images that --with and --images select."""
    from lorakit.data.caption_parts import tags_of
    from lorakit.errors import UserError

    editor = _editor(options)
    names = [
        name
        for name, caption in editor.captions.items()
        if fnmatchcase(name, options.images) and (not options.having or options.having in tags_of(caption))
    ]
    if not names:
        raise UserError(
            f"None of the {len(editor.captions)} images matches --images {options.images!r}"
            + (f" --with {options.having!r}" if options.having else "")
            + "; `lorakit tag show PROJECT --who` lists all of them."
        )
    return editor, names


def _print_change(change: Change | None) -> None:
    print("Nothing to change." if change is None else _summary(change))
    for name in change.skipped[:SHOWN] if change else ():
        print(f"! {name} was left unchanged (locked, or changed elsewhere)")
    if change and len(change.skipped) > SHOWN:
        print(f"! and {len(change.skipped) - SHOWN} more")


def _summary(change: Change) -> str:
    count = len({*change.new, *change.locked, *change.unlocked})
    return f"{change.what}  {count} images, by {change.by}" + " (undone)" * change.undone
