"""Which caption each image has, of the files beside it and the JSON files around it, and a note on each choice."""

from __future__ import annotations

from pathlib import Path

from lorakit.data.caption_files import METADATA, Caption, CaptionJson, ImageNames, read_caption_json, read_captions
from lorakit.data.listing import CAPTION_EXTENSIONS, Concept, Listing, Note


class CaptionSources:
    """Everything that is said of the images of a listing. A caption file wins over JSON, also an empty one, and the
    chosen ending over the other.
    """

    def __init__(self, listing: Listing, extension: str):
        self.listing, self.extension = listing, extension
        self.captions: dict[Path, Caption] = {}  # image -> what is said of it; without an entry nothing is
        self.notes: list[Note] = []
        for concept in listing.concepts:
            self._read_files(concept)
        files = [path for concept in listing.concepts for path in concept.files]
        files += [path for path in listing.others if path.parent == listing.root]
        self.books = [read_caption_json(path) for path in sorted(files, key=_order) if path.suffix.lower() == ".json"]
        images = [path for concept in listing.concepts for path in concept.images]
        names = {folder: ImageNames(folder, images) for folder in {book.file.parent for book in self.books}}
        for book in self.books:
            self._take(book, {key: names[book.file.parent].meant(key) for key in book.entries})

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

    def _take(self, book: CaptionJson, meant: dict[str, list[Path]]) -> None:
        """The captions of a JSON file for images that have none yet."""
        if book.error:
            return self._note("caption json", book.file, f"left out, {book.error}.")
        lost, strangers = 0, [key for key, images in meant.items() if not images]
        if len(strangers) == len(meant) and not _is_named_so(book.file):
            return self._note("foreign", book.file, "left out, no captions of the images here are in it.")
        if strangers or not meant:
            such = f", such as {strangers[0][:80]!r}" if strangers else ""
            text = f"{len(strangers)} of its {len(meant)} captions fit no image{such}."
            self._note("caption json", book.file, text)
        for key, images in meant.items():
            for image in images:
                caption = self.captions.setdefault(image, Caption(book.entries[key], book.file, "utf-8"))
                lost += caption.text != book.entries[key]
        if lost:
            text = f"{lost} of its captions are left out; the images have others, in caption files or nearer JSON."
            self._note("caption choice", book.file, text)


def _is_named_so(file: Path) -> bool:
    """Whether a JSON file is named as one of captions; what was uploaded twice may be captions-2.json."""
    return file.name.startswith("captions") or file.name in METADATA


def _order(file: Path) -> tuple:
    """Which of several JSON files is believed first: the nearest, captions.json, kohya's latest, the rest by name."""
    kohyas = METADATA.index(file.name) if file.name in METADATA else len(METADATA)
    return -len(file.parts), not file.name.startswith("captions"), kohyas, file
