"""From a folder of images to samples and a report of everything that is not used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorakit.data import DataConfig
from lorakit.data.caption_files import BOOK_EXTENSIONS, Caption
from lorakit.data.caption_parts import is_sentence, parts_of, tags_of
from lorakit.data.caption_sources import CaptionSources
from lorakit.data.captions import trained_caption, trigger_of
from lorakit.data.image_stats import ImageStats, StatsCache
from lorakit.data.images import ENDINGS, EXTENSIONS, UNREAD, how_to_convert
from lorakit.data.listing import CAPTION_EXTENSIONS, LEFT_OUT, Concept, Listing, Note, folder_of
from lorakit.errors import UserError

# The settings that a scan depends on.
SCAN_SETTINGS = (
    *("folder", "repeats", "trigger", "triggers", "caption_extension", "caption_lines", "keep_tokens_separator"),
    *("secondary_separator", "alpha_mask", "reading"),
)
MAX_REASONS = 10  # notes in the message of a dataset without usable images
# Where captions in an encoding that is not certain were all that there is.
ENCODING_ADVICE = "The dataset check (lorakit data check) names the encoding, and saves the captions as UTF-8."


class DataError(UserError):
    """The dataset cannot be trained on; the message says what was found, where and what to do.

    notes   what was noticed of its files before that
    """

    def __init__(self, message: str, notes: tuple[Note, ...] = ()):
        super().__init__(message)
        self.notes = notes


@dataclass(frozen=True)
class Sample:
    """One usable image. `name` is its path inside the dataset, `digest` the SHA-256 of its bytes; `is_captioned`
    when its caption was written for it, in a caption file or a JSON file: `written` is what that says, on one line.

    caption   what it is trained with; an alternative on each line when `caption_lines` is "alternatives"
    lines     what its caption file says, line by line
    mask      file that says which parts are learned, where that is used, and its digest
    profile   name of the colour profile from which its colours are converted; "" when they are taken as they are
    """

    name: str
    path: Path
    digest: str
    width: int
    height: int
    caption: str
    repeats: int
    is_reg: bool = False
    is_captioned: bool = True
    written: str = ""
    # where its caption is written: beside the image, with the chosen extension
    caption_file: Path = Path()
    # of its concept folder
    trigger: str = ""
    lines: tuple[str, ...] = ()
    mask: Path | None = None
    mask_digest: str = ""
    profile: str = ""


@dataclass(frozen=True)
class Scan:
    """All usable images in a fixed order, and a sentence for each file that is left out or treated specially."""

    samples: tuple[Sample, ...]
    notes: tuple[Note, ...]

    @property
    def left_out(self) -> tuple[Note, ...]:
        """The notes on images that are left out although they should be there."""
        return tuple(note for note in self.notes if note.kind in LEFT_OUT)

    def tag_frequency(self) -> dict[str, int]:
        """How many images have each tag, most frequent first; sentences are no tags."""
        tags = (tag for sample in self.samples if not sample.is_reg for tag in tags_of(sample.caption))
        counts = Counter(tag for tag in tags if not is_sentence(tag))
        return dict(counts.most_common())


def scan(config: DataConfig, project: Path) -> Scan:
    """Read a dataset. Raises DataError when the folder is missing or holds no usable image.

    Layouts: `<repeats>_<name>/` folders and `reg/<repeats>_<name>/` as in kohya's scripts, also one level down as in
    whole projects of theirs (img/, train_data/, reg_data/); otherwise every image below the folder, with the config's
    repeats. An image without caption is called by its concept folder's name. Images that were read before are not read
    again until they change.
    """
    root = folder_of(config, project)
    if not root.is_dir():
        raise DataError(f"The data folder {root} does not exist: put the images there or set data.folder.")
    listing, stats_cache = Listing(root, config.repeats, config.reading), StatsCache.of(Path(project))
    sources = CaptionSources(listing, config.caption_extension, config.reading)
    masks = [mask for concept in listing.concepts for mask in concept.masks.values()] * config.alpha_mask
    # All images of all concepts at once, so that threads share the work.
    stats = dict(stats_cache.measure([*(path for concept in listing.concepts for path in concept.images), *masks]))
    samples: list[Sample] = []
    notes: list[Note] = []
    for concept in listing.concepts:
        notes += _notes_on_names(concept, listing)
        notes += _notes_on_masks(concept, listing, stats if config.alpha_mask else {})
        for path in concept.images:
            name, caption = listing.name(path), sources.captions.get(path, Caption())
            notes += [Note(kind, name, text) for kind, text in _notes_on_image(path, stats[path])]
            if not stats[path].error:
                sample = _sample(path, listing, stats, caption, concept, config)
                notes += [Note(kind, name, text) for kind, text in _notes_on_caption(sample, caption)]
                # An image whose caption cannot be read is left out: it would be trained with a wrong one.
                samples += [sample] * (not caption.error)
    notes += [*sources.notes, *listing.notes, *_overlooked(listing, {book.file for book in sources.books})]
    if stats_cache.error:
        notes.append(Note("memory", "cache/.looks.json", f"{stats_cache.error}."))
    if not any(not sample.is_reg for sample in samples):
        raise _unusable(listing, notes)
    return Scan(tuple(samples), tuple(notes))


def _unusable(listing: Listing, notes: list[Note]) -> DataError:
    """The error of a dataset without usable images: whether there are any, and what is wrong with them."""
    count = sum(len(concept.images) for concept in listing.concepts if not concept.is_reg)
    expected = f"{', '.join(EXTENSIONS)} files are expected, directly inside or in <repeats>_<name>/ folders."
    why = f"all of its images ({count}) are left out." if count else expected
    lines = [f"No usable image in {listing.root}: {why}", *map(str, notes[:MAX_REASONS])]
    lines += [f"and {len(notes) - MAX_REASONS} more"] * (len(notes) > MAX_REASONS)
    lines += [ENCODING_ADVICE] * any(note.kind == "caption encoding" for note in notes)
    return DataError("\n".join(lines), tuple(notes))


def _sample(
    path: Path, listing: Listing, stats: dict[Path, ImageStats], caption: Caption, concept: Concept, config: DataConfig
) -> Sample:
    # Images without a caption in 10_white_cat/ are trained as "white cat".
    text = caption.text or concept.name.replace("_", " ")
    trigger = "" if concept.is_reg else trigger_of(listing.name(concept.folder), config)
    lines = [line for line in caption.lines if line and config.caption_lines == "alternatives"] or [text]
    mask = concept.masks.get(path) if config.alpha_mask else None
    mask = mask if mask and not stats[mask].error else None
    return Sample(
        name=listing.name(path),
        path=path,
        digest=stats[path].digest,
        width=stats[path].width,
        height=stats[path].height,
        caption=trained_caption(lines, trigger, config),
        repeats=concept.repeats,
        is_reg=concept.is_reg,
        is_captioned=bool(caption.text),
        written=caption.text,
        caption_file=path.with_suffix(config.caption_extension),
        trigger=trigger,
        lines=caption.lines,
        mask=mask,
        mask_digest=stats[mask].digest if mask else "",
        profile=stats[path].profile if config.reading > 1 else "",
    )


def _notes_on_names(concept: Concept, listing: Listing) -> Iterator[Note]:
    """Notes on a concept's files by their names alone."""
    first: dict[Path, Path] = {}
    images = set(concept.images)
    for path in concept.files:
        ending, stem = path.suffix.lower(), path.with_suffix("")
        if path in images:
            # a.png and a.jpg both read a.txt.
            if stem in first:
                text = f"shares its caption file with {listing.name(first[stem])}; rename one of them."
                yield Note("shared caption", listing.name(path), text)
            first[stem] = path
        elif ending in UNREAD:
            kind = UNREAD[ending]
            yield Note("unread format", listing.name(path), f"left out, a {kind} image: {how_to_convert(kind)}.")
        elif ending not in (*CAPTION_EXTENSIONS, *BOOK_EXTENSIONS, *EXTENSIONS):
            yield Note("foreign", listing.name(path), f"left out, not an image ({', '.join(EXTENSIONS)} are).")


def _notes_on_masks(concept: Concept, listing: Listing, stats: dict[Path, ImageStats]) -> Iterator[Note]:
    """Notes on masks that are not used; `stats` is empty when none are."""
    for image, mask in concept.masks.items():
        if not stats:
            yield Note("mask", listing.name(mask), f"left out, the mask of {image.name}.")
        elif stats[mask].error:
            text = f"left out, {image.name} is trained without it: {stats[mask].error}."
            yield Note("mask", listing.name(mask), text)


def _notes_on_image(path: Path, stats: ImageStats) -> Iterator[tuple[str, str]]:
    """Notes on an image's content: (kind, text)."""
    if stats.error:
        yield "unreadable", f"left out, {stats.error}."
    elif stats.format != ENDINGS[path.suffix.lower()]:
        yield "wrong ending", f"is a {stats.format} image, whatever its name says; used as what it is."
    if stats.profile_error:
        yield "colour profile", f"its colours are taken as sRGB, as its colour profile {stats.profile_error}."
    if stats.frames > 1:
        yield "animated", f"moves ({stats.frames} images); the first is used."


def _notes_on_caption(sample: Sample, caption: Caption) -> Iterator[tuple[str, str]]:
    """Notes on an image's caption: (kind, text)."""
    ending, file = sample.caption_file.suffix, caption.source and caption.source.name
    if caption.error:
        yield "caption encoding", f"left out because of its caption file {file}: {caption.error}."
    elif file and not caption.text:
        yield "empty caption", f"nothing is in {file}; trained as {sample.caption!r}."
    elif not caption.text:
        yield "no caption", f"no {ending} file with a caption; trained as {sample.caption!r}."
    # a sentence in Chinese has its own commas
    if any(("，" in part or "、" in part) and not is_sentence(part) for part in parts_of(caption.text)):
        yield "chinese commas", "its caption has Chinese commas (， or 、); only ordinary ones (,) part tags."


def _overlooked(listing: Listing, books: set[Path]) -> Iterator[Note]:
    """A note for each folder with files that belong to no concept, e.g. beside kohya's folders."""
    left_out: dict[Path, Counter[str]] = {}
    for path in (path for path in listing.others if path not in books):
        what = "images" if path.suffix.lower() in EXTENSIONS else "other files"
        left_out.setdefault(path.parent, Counter())[what] += 1
    for folder, counts in left_out.items():
        numbers = " and ".join(f"{counts[what]} {what}" for what in ("images", "other files") if counts[what])
        text = f"{numbers} left out; beside <repeats>_<name>/ folders, only images directly in these are used."
        yield Note("overlooked folder", listing.name(folder) + "/" * (folder != listing.root), text)
