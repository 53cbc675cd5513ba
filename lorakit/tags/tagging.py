"""From what a tagger says of images to captions, written through the tag book."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorakit.config import Config, ConfigError, Field, Slider, from_dict, read_yaml, setting, to_dict
from lorakit.data import DataConfig
from lorakit.data.captions import tags_of
from lorakit.data.images import ImageError, open_rgb
from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.files import write_atomic
from lorakit.project import Project
from lorakit.taggers import Refused, Tagger, TaggerError
from lorakit.tags import vocabulary
from lorakit.tags.authors import DOCTOR
from lorakit.tags.editor import PERSON, CaptionEditor
from lorakit.tags.rules import matcher
from lorakit.tags.scores import ScoreFile, SentenceFile, taggers_with_sentences
from lorakit.tags.vocabulary import ORDER, implied, spelled

PROFILES = ("sd", "anima")
SURE = {"count": 0, "character": 1}  # what comes first with SD, and is left out last
MOST_REFUSED = 3  # images beyond as many as were answered; then the tagger refuses whatever it is asked
MIXES = ("tags, sentence", "sentence, tags", "tags", "sentence")


@dataclass(frozen=True, kw_only=True)
class TaggingConfig(Config):
    """What of a tagger's answers gets into captions, and how; nothing here asks the tagger again."""

    which: str = setting(
        "missing",
        help="images that get captions: those without one of this kind, or all that no person wrote or locked",
        choices=("missing", "unlocked"),
        ui=Field(label="images", basic=True),
    )
    profile: str = setting(
        "sd",
        help="order and spelling of tags: sd (SD 1.5, SDXL) has trigger, number of people, character, then the surest; "
        "anima has quality, number of people, character, series, @artist, then the rest, all in lower case",
        choices=PROFILES,
        ui=Field(basic=True),
    )
    mix: str = setting(
        "tags, sentence",
        help="what a caption holds when taggers of both kinds were asked, and in which order",
        choices=MIXES,
        ui=Field(label="tags and sentence"),
    )
    general_threshold: float = setting(
        0.35,
        help="tags of at least this score are used, but for characters",
        range=(0.05, 1),
        ui=Slider(0.05, 0.95, 0.05, label="threshold", basic=True),
    )
    character_threshold: float = setting(
        0.85,
        help="characters of at least this score are used",
        range=(0.05, 1),
        ui=Slider(0.05, 1, 0.05, label="threshold of characters", basic=True),
    )
    characters: bool = setting(True, help="use names of characters")
    series: bool = setting(True, help="use names of series (copyright)")
    artists: bool = setting(False, help="use names of artists")
    rating: bool = setting(False, help="use the surest rating (general, sensitive, questionable, explicit)")
    meta: bool = setting(False, help="use tags about the file, such as highres")
    quality: bool = setting(False, help="use tags that judge, such as masterpiece")
    blacklist: tuple[str, ...] = setting((), help="tags that are never used; * stands for any text, as in * background")
    replacements: dict[str, str] = setting(
        {}, help="tag or pattern: what is written for it, e.g. red footwear: red boots; empty leaves it out"
    )
    without_implied: bool = setting(
        True,
        help="leave out what another tag says already: boots and red footwear beside red boots",
        ui=Field(label="no doubles"),
    )
    most_tags: int = setting(0, help="at most this many tags, surest ones; 0: all", range=(0, 500))


def read_tagging(project: Project, tagger: str = "") -> tuple[str, dict[str, Any], TaggingConfig]:
    """(tagger, its settings, what is made of its answers) as `tagging.yaml` keeps them, or what is set at first; of
    another `tagger` than the chosen one, what was set when that was chosen.

    Raises ConfigError for a damaged file.
    """
    told = _kept(project)
    name = tagger or told["tagger"]
    return name, told["settings"].get(name, {}), from_dict(TaggingConfig, told["captions"], "captions.")


def write_tagging(project: Project, tagger: str, settings: dict[str, Any], config: TaggingConfig) -> None:
    """Keep what the user chose in `tagging.yaml`, beside the settings of other taggers.

    Raises ConfigError where that is damaged or cannot be written.
    """
    import yaml

    told = {"tagger": tagger, "settings": _kept(project)["settings"] | {tagger: settings}, "captions": to_dict(config)}
    file = project.folder / "tagging.yaml"
    try:
        write_atomic(file, yaml.safe_dump(told, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}): free some space, or allow writing.") from error


def _kept(project: Project) -> dict[str, Any]:
    """The chosen `tagger`, `settings` by tagger, and `captions`."""
    file = project.folder / "tagging.yaml"
    told = {"tagger": "wd14", "settings": {}, "captions": {}} | (read_yaml(file) if file.exists() else {})
    tables = [told["settings"], *told["settings"].values()] if isinstance(told["settings"], dict) else [None]
    if not isinstance(told["tagger"], str) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{file}: `tagger` is a name, `settings` a table for each; mend the file or remove it.")
    return told


def tag(project: Project, data_config: DataConfig, tagger: Tagger, config: TaggingConfig) -> Iterator[Progress]:
    """Ask a tagger of each image that needs it and was never shown to it, then write captions through the tag book,
    as one change by `tagger.name`.

    Yields Progress of "images asked" (none when all were asked before), and at last one of "captions": `done` of
    `total` were written, the others are the same already. Cut anywhere, the next call goes on where it was.
    Raises TaggerError and what CaptionEditor raises. Where the tagger refused some images, or some became unreadable,
    TaggerError comes at the end, when the captions of the others are written.
    """
    if config.mix in ("tags", "sentence") and config.mix != tagger.output:
        raise ConfigError(f"mix is {config.mix!r}, but {tagger.name} gives {tagger.output}: choose both, or that.")
    book = CaptionEditor(project, data_config)
    names = wanted(project, book, data_config.trigger, tagger.output, config.which)
    answers = _answers_of(project, tagger)
    left = yield from _ask(book, names, tagger, answers)
    book.refresh()  # that took long: other hands and taggers may have been there, and images be gone
    there = [name for name in names if name in book.samples]
    names = [name for name in there if answers.get(book.samples[name].digest) is not None]
    yield _write(project, book, names, data_config.trigger, answers, config)
    if left:
        raise left


def ask(project: Project, data_config: DataConfig, tagger: Tagger) -> Iterator[Progress]:
    """Ask a tagger of all images that it was never shown, locked ones too, and write no caption: for what the editor
    says of tags. Yields and raises as `tag` does."""
    book = CaptionEditor(project, data_config)
    answers = _answers_of(project, tagger)
    left = yield from _ask(book, list(book.samples), tagger, answers)
    if left:
        raise left


def tags_from(scores: Mapping[str, float], categories: Mapping[str, str], config: TaggingConfig) -> dict[str, str]:
    """Tags as captions spell them, surest first, each with its kind (see tag_words.ORDER), of a tagger's raw scores:
    thresholds, categories, replacements and blacklist are applied; implied tags and `most_tags` need the caption."""
    is_used = {
        "general": True,
        "character": config.characters,
        "copyright": config.series,
        "artist": config.artists,
        "rating": config.rating,
        "meta": config.meta,
        "quality": config.quality,
    }
    ratings = [tag for tag in scores if categories.get(tag) == "rating"]
    surest = max(ratings, key=scores.__getitem__, default=None)
    found: dict[str, str] = {}
    for tag in sorted(scores, key=scores.__getitem__, reverse=True):
        category = categories.get(tag, "general")
        least = config.character_threshold if category == "character" else config.general_threshold
        if not is_used[category] or (tag != surest if category == "rating" else scores[tag] < least):
            continue
        for text in _replaced(_in_profile(spelled(tag), category, config.profile), config):
            found.setdefault(text, vocabulary.kind(text, category))
    return found


def compose(
    origin: Mapping[str, str],
    removed: Collection[str],
    answer: Mapping[str, str] | str,
    config: TaggingConfig,
    trigger: str = "",
    writers: Collection[str] = (),
) -> str:
    """A caption from who set which tag of it, which tags a person took out, and what a tagger says now: the tags of
    `tags_from`, or a sentence. `writers` are the taggers whose tags are parts of sentences."""
    person = [tag for tag, by in origin.items() if by == PERSON and tag != trigger]
    sentence = [tag for tag, by in origin.items() if by in writers and tag != trigger]
    fresh = [tag for tag, by in origin.items() if by != PERSON and by not in writers and tag != trigger]
    if isinstance(answer, str):
        sentence = [part for part in tags_of(_plain(answer)) if part not in (trigger, *person, *removed)]
        tags = [tag for tag in origin if tag in person or tag in fresh]
    else:
        fresh = [tag for tag in answer if tag not in (trigger, *person) and tag not in removed]
        if config.without_implied:
            said = implied([*person, *fresh])
            fresh = [tag for tag in fresh if tag not in said]
        kinds = {tag: answer[tag] if tag in answer else vocabulary.kind(tag) for tag in [*person, *fresh]}
        fresh = sorted(fresh, key=lambda tag: SURE.get(kinds[tag], len(SURE)))[: config.most_tags or None]
        order = {kind: place for place, kind in enumerate(ORDER)} if config.profile == "anima" else SURE
        tags = sorted([*person, *fresh], key=lambda tag: order.get(kinds[tag], len(order)))
    parts = {"tags": tags, "sentence": sentence}
    used = config.mix.split(", ")
    if "tags" not in used:
        parts["tags"] = person
    chosen = [tag for part in (used if "tags" in used else ["tags", *used]) for tag in parts[part]]
    return ", ".join(dict.fromkeys([trigger, *chosen] if trigger else chosen))


def _plain(sentence: str) -> str:
    """A sentence on one line."""
    return " ".join(sentence.split())


def _in_profile(tag: str, category: str, profile: str) -> str:
    if profile != "anima":
        return tag
    tag = vocabulary.safety(tag) if category == "rating" else tag.lower()
    return f"@{tag}" if category == "artist" and not tag.startswith("@") else tag


def _replaced(tag: str, config: TaggingConfig) -> list[str]:
    """What is written for a tag: itself, others, or nothing. red_boots names it, too."""
    texts = next((tags_of(new) for old, new in config.replacements.items() if matcher(spelled(old))(tag)), [tag])
    return [text for text in texts if not any(matcher(spelled(pattern))(text) for pattern in config.blacklist)]


def _answers(project: Project, tagger: str, output: str, prompt: str) -> ScoreFile | SentenceFile:
    return ScoreFile(project, tagger) if output == "tags" else SentenceFile(project, tagger, prompt)


def _answers_of(project: Project, tagger: Tagger) -> ScoreFile | SentenceFile:
    """What this very tagger said before. Raises TaggerError where that was another one of the same name."""
    if tagger.name in (PERSON, DOCTOR):
        raise TaggerError(f"A tagger named {tagger.name!r} would be taken for another: give its folder another name.")
    answers = _answers(project, tagger.name, tagger.output, tagger.prompt)
    if isinstance(answers, ScoreFile) and (others := answers.categories.keys() - tagger.categories.keys()):
        raise TaggerError(
            f"{answers.file} keeps what another tagger named {tagger.name!r} said, with tags that this one does not "
            f"know ({min(others)}, …): give this one's folder another name, or move that file away."
        )
    return answers


def _ask(
    book: CaptionEditor, names: list[str], tagger: Tagger, answers: ScoreFile | SentenceFile
) -> Generator[Progress, None, TaggerError | None]:
    """Ask of the images that were never asked of; returns what is to be said of those without an answer."""
    paths = {book.samples[name].digest: book.samples[name].path for name in names}
    fresh = [digest for digest in paths if answers.get(digest) is None]
    left: dict[str, UserError] = {}  # digest -> why it has no answer
    for begin in range(0, len(fresh), tagger.batch):
        batch, images = fresh[begin : begin + tagger.batch], {}
        for digest in batch:
            try:
                images[digest] = open_rgb(paths[digest])
            except ImageError as error:  # it went bad, or away, meanwhile
                left[digest] = error
        try:
            said = dict(zip(images, tagger.read([*images.values()]), strict=True)) if images else {}
        except Refused as error:
            left |= dict.fromkeys(images, error)
            if 2 * len(left) > begin + len(batch) + MOST_REFUSED:
                raise
            continue
        if isinstance(answers, ScoreFile):
            answers.add(said, tagger.categories)
        else:
            answers.add(said)
        yield Progress(what="images asked", done=begin + len(batch), total=len(fresh))
    if not left:
        return None
    few = ", ".join(paths[digest].name for digest in list(left)[:5]) + " …" * (len(left) > 5)
    return TaggerError(f"{len(left)} images got no answer, all others did: {few}. {next(reversed(left.values()))}")


def wanted(project: Project, book: CaptionEditor, trigger: str, output: str, which: str) -> list[str]:
    """The images that get captions from a tagger with this output."""
    names, writers = [name for name in book.samples if not book.is_locked(name)], taggers_with_sentences(project)
    if which == "unlocked":
        return names

    def has(name: str) -> bool:
        set_by = [by for tag, by in book.origin(name).items() if tag != trigger and by != DOCTOR]
        return any((by in writers) == (output == "sentence") for by in set_by)

    return [name for name in names if not has(name)]


def _write(
    project: Project,
    book: CaptionEditor,
    names: list[str],
    trigger: str,
    answers: ScoreFile | SentenceFile,
    config: TaggingConfig,
) -> Progress:
    writers, captions = taggers_with_sentences(project), {}
    for name in names:
        answer = answers.get(book.samples[name].digest)
        if isinstance(answers, ScoreFile):
            answer = tags_from(answer, answers.categories, config)
        captions[name] = compose(book.origin(name), book.removed(name), answer, config, trigger, writers)
    change = book.change(f"tagged with {answers.tagger}", captions, by=answers.tagger)
    return Progress(what="captions", done=len(change.new) if change else 0, total=len(names))
