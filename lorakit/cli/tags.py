"""`lorakit tag`: captions from taggers, the table of tags, edits of many captions, undo, in a terminal."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli.train import project_at, with_changes

if TYPE_CHECKING:
    from lorakit.data import DataConfig
    from lorakit.tags.editor import CaptionEditor, Change
    from lorakit.tags.rules import Rule

SET = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
SHOWN = 8  # images that are named
EVERY = 10  # of the lines of progress one in so many is printed


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the verbs of `lorakit tag`."""
    project = argparse.ArgumentParser(add_help=False)
    project.add_argument("project", type=Path, help="project folder; its images are in dataset/")
    project.add_argument("--set", **SET, help="e.g. data.trigger=mofurin, data.folder=prepared")
    chosen = argparse.ArgumentParser(add_help=False, parents=[project])
    chosen.add_argument("--with", dest="having", default="", metavar="TAG", help="only images that have this tag")
    chosen.add_argument("--images", default="*", metavar="GLOB", help="only these, e.g. '10_mofurin/*'")

    def verb(name: str, do: Callable, help: str, parent: argparse.ArgumentParser = project) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=help, description=help, parents=[parent])
        made.set_defaults(verb=do)
        return made

    run = verb("run", _run, "write captions with a tagger; the same command again goes on; what people wrote stays")
    run.add_argument("--tagger", default="", help="wd14, vlm or server; --set tagger.source=..., tagging.profile=anima")
    show = verb("show", _show, "all tags with the number of images that have them, rarest first", chosen)
    show.add_argument("--who", action="store_true", help="name the images, with who set each tag, instead")
    _add_edit(verb("edit", _edit, "change many captions at once; patterns such as '* footwear' too", chosen))
    verb("undo", _undo, "take back the newest change")
    verb("redo", _redo, "make the change again that was undone last")
    verb("history", _history, "all changes, oldest first")
    verb("lock", _lock, "keep taggers from captions", chosen)
    verb("unlock", _unlock, "let taggers write captions again that a person wrote or locked", chosen)
    verb("diff", _diff, "what changed since the first caption was seen, as a unified diff")


def _add_edit(edit: argparse.ArgumentParser) -> None:
    ways = edit.add_mutually_exclusive_group(required=True)
    ways.add_argument("--add", metavar="TAG", help="where it is missing, at the end")
    ways.add_argument("--add-first", metavar="TAG", help="where it is missing, first or after the trigger word")
    ways.add_argument("--remove", metavar="TAG")
    ways.add_argument("--rename", nargs=2, metavar=("OLD", "NEW"))
    ways.add_argument("--merge", nargs="+", metavar="TAG", help="the last one is written for all others")


def _run(options: argparse.Namespace) -> int:
    from lorakit import taggers
    from lorakit.config import from_dict, to_dict
    from lorakit.tags.editor import CaptionEditor
    from lorakit.tags.tagging import TaggingConfig, read_tagging, tag, write_tagging

    project = project_at(options.project)
    name, settings, config = read_tagging(project, options.tagger)
    told = with_changes({"tagger": settings, "tagging": to_dict(config)}, options.set)
    config = from_dict(TaggingConfig, told.pop("tagging"), "tagging.")
    settings = told.pop("tagger")
    data = _data(told)
    from_dict(taggers.config_class(name), settings, "tagger.")
    write_tagging(project, name, settings, config)
    for event in tag(project, data, taggers.load(name, settings), config):
        if event.what == "captions" or event.done == event.total or event.done % EVERY == 0:
            print(f"{event.what}: {event.done} of {event.total}", flush=True)
    book = CaptionEditor(project, data)
    if locked := sum(map(book.is_locked, book.samples)):
        print(f"left alone, as a person wrote or locked them: {locked}; `lorakit tag unlock` lets taggers write them")
    return 0


def _show(options: argparse.Namespace) -> int:
    from lorakit.data.captions import tags_of

    book, names = _chosen(options)
    if not options.who:
        counts = Counter(tag for name in names for tag in set(tags_of(book.captions[name])))
        for tag, count in sorted(counts.items(), key=lambda row: (row[1], row[0])):
            print(f"{count:5}  {tag}")
    for name in names if options.who else ():
        told = ", ".join(tag if by == "person" else f"{tag} ({by})" for tag, by in book.origin(name).items())
        print(f"{name}{' [locked]' * book.is_locked(name)}: {told}")
    return 0


def _edit(options: argparse.Namespace) -> int:
    book, names = _chosen(options)
    what, rule = _rule(options, _settings(options).trigger)
    _tell(book.change(what, {name: rule.apply(book.captions[name]) for name in names}))
    return 0


def _rule(options: argparse.Namespace, trigger: str) -> tuple[str, Rule]:
    """What is to be done, in words, and the rule that does it."""
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
        raise UserError("--merge wants at least two tags, such as --merge boots 'red footwear' 'red boots'.")
    return f"merge {', '.join(tags)} into {into}", Merge(tuple(tags), into, trigger)


def _undo(options: argparse.Namespace) -> int:
    _tell(_book(options).undo())
    return 0


def _redo(options: argparse.Namespace) -> int:
    _tell(_book(options).redo())
    return 0


def _lock(options: argparse.Namespace) -> int:
    book, names = _chosen(options)
    _tell(book.lock(names))
    return 0


def _unlock(options: argparse.Namespace) -> int:
    book, names = _chosen(options)
    _tell(book.unlock(names))
    return 0


def _history(options: argparse.Namespace) -> int:
    for change in _book(options).history():
        print(f"{change.number:5}  {change.at}  {_told(change)}")
    return 0


def _diff(options: argparse.Namespace) -> int:
    print(_book(options).difference(), end="")
    return 0


def _settings(options: argparse.Namespace) -> DataConfig:
    return _data(with_changes({}, options.set))


def _data(settings: dict) -> DataConfig:
    from lorakit.config import ConfigError, from_dict
    from lorakit.data import DataConfig

    data = settings.pop("data", {})
    if settings:
        raise ConfigError(f"{', '.join(settings)} is no setting here; write data.trigger=..., for example.")
    return from_dict(DataConfig, data, "data.")


def _book(options: argparse.Namespace) -> CaptionEditor:
    from lorakit.tags.editor import CaptionEditor

    return CaptionEditor(project_at(options.project), _settings(options))


def _chosen(options: argparse.Namespace) -> tuple[CaptionEditor, list[str]]:
    """The book, and the names of the images that --with and --images choose."""
    from lorakit.data.captions import tags_of
    from lorakit.errors import UserError

    book = _book(options)
    names = [
        name
        for name, caption in book.captions.items()
        if fnmatchcase(name, options.images) and (not options.having or options.having in tags_of(caption))
    ]
    if not names:
        raise UserError(
            f"None of the {len(book.captions)} images is chosen by --images {options.images!r}"
            + (f" --with {options.having!r}" if options.having else "")
            + "; `lorakit tag show PROJECT --who` names all of them."
        )
    return book, names


def _tell(change: Change | None) -> None:
    print("Nothing to change." if change is None else _told(change))
    for name in change.kept[:SHOWN] if change else ():
        print(f"! {name} is left as it is")
    if change and len(change.kept) > SHOWN:
        print(f"! and {len(change.kept) - SHOWN} more")


def _told(change: Change) -> str:
    count = len({*change.new, *change.locked, *change.unlocked})
    return f"{change.what}  {count} images, by {change.by}" + " (undone)" * change.undone
