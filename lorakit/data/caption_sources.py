"""Chooses the caption of each image among caption files and JSON files, with a note on each choice."""

from __future__ import annotations

from pathlib import Path

from lorakit.data.caption_files import (
    BOOK_EXTENSIONS,
    METADATA,
    TEXT_KEYS,
    Caption,
    CaptionJson,
    ImageNames,
    read_caption_json,
    read_captions,
)
from lorakit.data.listing import CAPTION_EXTENSIONS, Concept, Listing, Note


class CaptionSources:
    """The captions of all images of a listing. A caption file wins over JSON, even an empty one, and the chosen
    extension over the other.
    """

    def __init__(self, listing: Listing, extension: str, reading: int = 2):
        self.listing, self.extension, self._reading = listing, extension, reading
        # image -> its caption; images without one have no entry
        self.captions: dict[Path, Caption] = {}
        self.notes: list[Note] = []
        for concept in listing.concepts:
            self._read_files(concept)
        files = [path for concept in listing.concepts for path in concept.files]
        files += [path for path in listing.others if path.parent == listing.root]
        images = [path for concept in listing.concepts for path in concept.images]
        endings = BOOK_EXTENSIONS if reading > 1 else (".json",)
        # a.json and a.png.json are of a.png alone
        own = {*images, *(path.with_suffix("") for path in images)} if reading > 1 else set()
        beside = {path: path.with_suffix("") for path in files if path.suffix.lower() == ".json"}
        beside = {path: image for path, image in beside.items() if image in own}
        self.books = [
            read_caption_json(path, beside[path].name if path in beside else "", reading)
            for path in sorted(files, key=lambda path: (path not in beside, _order(path)))
            if path.suffix.lower() in endings
            and (path in beside or path.suffix.lower() != ".csv" or _is_named_so(path))
        ]
        names = {folder: ImageNames(folder, images) for folder in {book.file.parent for book in self.books}}
        for book in self.books:
            images_of = {key: names[book.file.parent].find(key) for key in {**book.entries, **book.unread}}
            self._note_unread(book, images_of, book.file in beside)
            self._take(book, {key: images_of[key] for key in book.entries})

    def _note(self, kind: str, path: Path, text: str) -> None:
        self.notes.append(Note(kind, self.listing.name(path), text))

    def _read_files(self, concept: Concept) -> None:
        """The caption files of a concept folder."""
        beside: dict[Path, list[Path]] = {image.with_suffix(""): [] for image in concept.images}
        for file in concept.files:
            if file.suffix.lower() in CAPTION_EXTENSIONS:
                if file.with_suffix("") in beside:
                    beside[file.with_suffix("")].append(file)
                else:
                    self._note("caption without image", file, "left out, no image has this name.")
        for files in beside.values():
            # Exact extension first, then the same in other case, then by name.
            files.sort(key=lambda file: (file.suffix != self.extension, file.suffix.lower() != self.extension, file))
        captions = read_captions(files[0] for files in beside.values() if files)
        for image in concept.images:
            if files := beside[image.with_suffix("")]:
                self.captions[image] = captions[files[0]]
        for first, *others in filter(None, beside.values()):
            for file in others:
                self._note("caption choice", file, f"left out, {first.name} is read.")
            if first.suffix.lower() != self.extension:
                self._note("caption choice", first, f"is read, as there is no {self.extension} file.")

    def _note_unread(self, book: CaptionJson, images_of: dict[str, list[Path]], is_beside: bool) -> None:
        """A note on a file of captions that is not understood, and on entries that are none though they name images."""
        is_ours = is_beside or (self._reading > 1 and _is_named_so(book.file))
        if book.error:
            return self._note("unread captions" if is_ours else "caption json", book.file, f"left out, {book.error}.")
        lost = [key for key in book.unread if images_of[key] and images_of[key][0] not in self.captions]
        if lost and book.unread[lost[0]] != "nothing":
            place = "" if is_beside else f" for {lost[0][:80]!r} (of {len(lost)} such images)"
            text = f"left out, it has {book.unread[lost[0]]}{place}; {', '.join(TEXT_KEYS)} would be read."
            self._note("unread captions", book.file, text)

    def _take(self, book: CaptionJson, images_of: dict[str, list[Path]]) -> None:
        """The captions of a JSON file for images that have none yet."""
        if book.error:
            return
        lost, strangers = 0, [key for key, images in images_of.items() if not images]
        if not images_of and any(note.name == self.listing.name(book.file) for note in self.notes):
            return
        # A JSON file without any matching key is something else, e.g. a tool's settings.
        if len(strangers) == len(images_of) and not _is_named_so(book.file):
            return self._note("foreign", book.file, "left out, no captions of the images here are in it.")
        if strangers or not images_of:
            such = f", such as {strangers[0][:80]!r}" if strangers else ""
            text = f"{len(strangers)} of its {len(images_of)} captions fit no image{such}."
            self._note("caption json", book.file, text)
        for key, images in images_of.items():
            for image in images:
                # Files and nearer JSON were read before, so their captions stay.
                caption = self.captions.setdefault(image, Caption(book.entries[key], book.file, "utf-8"))
                lost += caption.text != book.entries[key]
        if lost:
            text = f"{lost} of its captions are left out; the images have others, in caption files or nearer JSON."
            self._note("caption choice", book.file, text)


def _is_named_so(file: Path) -> bool:
    """Whether a JSON file has the name of a caption file; captions-2.json is a second upload."""
    return file.name.startswith(("captions", "metadata")) or file.name in METADATA


def _order(file: Path) -> tuple:
    """Sort key of JSON files: the nearest to the images first, then captions.json, kohya's latest, the rest by name."""
    kohyas = METADATA.index(file.name) if file.name in METADATA else len(METADATA)
    # Longer paths are nearer to the images.
    return -len(file.parts), not file.name.startswith("captions"), kohyas, file
