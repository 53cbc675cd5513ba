"""Automatic captions: a tagger's scores or sentences become captions, written through the caption editor."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from lorakit.config import Config, ConfigError, Field, Slider, from_dict, read_yaml, setting, to_dict
from lorakit.data import DataConfig
from lorakit.data.caption_parts import END, pieces_of, tags_of
from lorakit.data.images import ImageError, open_rgb
from lorakit.errors import UserError
from lorakit.events import Progress
from lorakit.files import write_atomic
from lorakit.models.files.marks import CaptionProfile, caption_profiles
from lorakit.project import Project
from lorakit.taggers import ImagesRefused, Tagger, TaggerError
from lorakit.tags import vocabulary
from lorakit.tags.authors import DOCTOR, PERSON
from lorakit.tags.editor import CaptionEditor
from lorakit.tags.rules import matcher
from lorakit.tags.scores import ScoreFile, SentenceFile, taggers_with_sentences
from lorakit.tags.vocabulary import implied, spelled

MIXES = ("tags, sentence", "sentence, tags", "tags", "sentence")
# With `most_tags`, these kinds of tags are kept first; the rest by score.
KEPT_FIRST = ("count", "character")
# A tagger that refuses this many images more than it accepts is given up: it would refuse the others, too.
MAX_REFUSED = 3


@dataclass(frozen=True, kw_only=True)
class TaggingConfig(Config):
    """How a tagger's results become captions. Stored results are used again, so that changes take no new run."""

    which: str = setting(
        "missing",
        help="which images get a caption; hand-written and locked captions are never changed",
        choices=("missing", "unlocked"),
        ui=Field(label="images", basic=True),
    )
    profile: str = setting(
        "sd",
        help="order and spelling of tags: Stable Diffusion = trigger word, number of people, character, then by score; "
        "Anima = quality, number of people, character, series, @artist, then the rest, all in lower case",
        choices=lambda: tuple(caption_profiles()),
        ui=Field(label="tag order", basic=True),
    )
    mix: str = setting(
        "tags, sentence",
        help="parts of a caption, and their order, when the images were both tagged and described",
        choices=MIXES,
        ui=Field(label="caption parts"),
    )
    general_threshold: float = setting(
        0.35,
        help="minimum score of a tag; lower = more tags, more of them wrong",
        range=(0.05, 1),
        ui=Slider(0.05, 0.95, 0.05, label="threshold", basic=True),
    )
    character_threshold: float = setting(
        0.85,
        help="minimum score of a character's name",
        range=(0.05, 1),
        ui=Slider(0.05, 1, 0.05, label="character threshold", basic=True),
    )
    characters: bool = setting(True, help="write names of characters")
    series: bool = setting(True, help="write names of series (copyright tags)")
    artists: bool = setting(False, help="write names of artists")
    rating: bool = setting(
        False, help="write the rating with the highest score (general, sensitive, questionable, explicit)"
    )
    meta: bool = setting(False, help="write tags about the file, such as highres", ui=Field(label="meta tags"))
    quality: bool = setting(False, help="write quality tags, such as masterpiece", ui=Field(label="quality tags"))
    blacklist: tuple[str, ...] = setting(
        (),
        help="tags that are never written; * stands for any text, as in * background",
        ui=Field(label="excluded tags"),
    )
    replacements: dict[str, str] = setting(
        {}, help="tag or pattern: the tags that replace it, e.g. red footwear: red boots; empty removes it"
    )
    without_implied: bool = setting(
        True,
        help="leave out tags that another one implies: boots and red footwear beside red boots",
        ui=Field(label="skip implied tags"),
    )
    most_tags: int = setting(
        0,
        help="maximum number of tags, those with the highest scores; 0 = all",
        range=(0, 500),
        ui=Field(label="max tags"),
    )


def read_tagging(project: Project, tagger: str = "") -> tuple[str, dict[str, Any], TaggingConfig]:
    """(tagger, its settings, how its results become captions) from `tagging.yaml`, or the defaults.

    tagger   another one than the selected one: returns the settings that were made for that

    Raises ConfigError for a damaged file.
    """
    stored = _stored(project)
    name = tagger or stored["tagger"]
    return (
        name,
        stored["settings"].get(name, {}),
        from_dict(TaggingConfig, stored["captions"], f"{project.folder / 'tagging.yaml'}: captions."),
    )


def write_tagging(project: Project, tagger: str, settings: dict[str, Any], config: TaggingConfig) -> None:
    """Store the selected tagger and its settings in `tagging.yaml`; those of other taggers stay in it.

    Raises ConfigError where that is damaged or cannot be written.
    """
    import yaml

    all_settings = _stored(project)["settings"] | {tagger: settings}
    content = {"tagger": tagger, "settings": all_settings, "captions": to_dict(config)}
    file = project.folder / "tagging.yaml"
    try:
        write_atomic(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}): free some space, or allow writing.") from error


def _stored(project: Project) -> dict[str, Any]:
    """`tagging.yaml`: the selected `tagger`, the `settings` by tagger, and `captions` (a TaggingConfig)."""
    file = project.folder / "tagging.yaml"
    stored = {"tagger": "wd14", "settings": {}, "captions": {}} | (read_yaml(file) if file.exists() else {})
    tables = [stored["settings"], *stored["settings"].values()] if isinstance(stored["settings"], dict) else [None]
    if not isinstance(stored["tagger"], str) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{file}: `tagger` is a name, `settings` a table for each; fix the file or remove it.")
    return stored


def tag(project: Project, data_config: DataConfig, tagger: Tagger, config: TaggingConfig) -> Iterator[Progress]:
    """Run a tagger on the images that need captions, then write the captions as one change by `tagger.name`.

    Images that this tagger has seen before are not run again, so an interrupted call continues where it stopped.
    Yields Progress of "images scored" (none when all were scored before), and at last one of "captions": `done` of
    `total` were written, the others were the same already.
    Raises TaggerError and what CaptionEditor raises. Where the tagger refused some images, or some became unreadable,
    TaggerError comes at the end, when the captions of the others are written.
    """
    if config.mix in ("tags", "sentence") and config.mix != tagger.output:
        raise ConfigError(f"mix is {config.mix!r}, but {tagger.name} gives {tagger.output}: choose both, or that.")
    editor = CaptionEditor(project, data_config)
    names = images_to_tag(project, editor, tagger.output, config.which)
    results = _results_of(project, tagger)
    failure = yield from _run_tagger(editor, names, tagger, results)
    # that took long: captions may have been written elsewhere, and images may be gone
    editor.refresh()
    present = [name for name in names if name in editor.samples]
    names = [name for name in present if results.get(editor.samples[name].digest) is not None]
    yield _write_captions(project, editor, names, results, config)
    if failure:
        raise failure


def score(project: Project, data_config: DataConfig, tagger: Tagger) -> Iterator[Progress]:
    """Run a tagger on all images that it has not seen, locked ones too, and write no captions.

    The tag editor shows the scores. Yields and raises as `tag` does.
    """
    editor = CaptionEditor(project, data_config)
    failure = yield from _run_tagger(editor, list(editor.samples), tagger, _results_of(project, tagger))
    if failure:
        raise failure


def images_to_tag(project: Project, editor: CaptionEditor, output: str, which: str) -> list[str]:
    """The images that get a caption from a tagger with this output ("tags" or "sentence").

    which   "unlocked": all that are not locked; "missing": only those of them without this kind of caption
    """
    names, captioners = [name for name in editor.samples if not editor.is_locked(name)], taggers_with_sentences(project)
    if which == "unlocked":
        return names

    # the trigger word alone is no caption, nor is what the doctor wrote for an image without one
    def has_caption(name: str) -> bool:
        triggers = tags_of(editor.samples[name].trigger)
        authors = [by for tag, by in editor.authors(name).items() if tag not in triggers and by != DOCTOR]
        return any((by in captioners) == (output == "sentence") for by in authors)

    return [name for name in names if not has_caption(name)]


def tags_from(scores: Mapping[str, float], categories: Mapping[str, str], config: TaggingConfig) -> dict[str, str]:
    """The tags to write for a tagger's raw scores, highest score first, each with its kind (vocabulary.KINDS).

    scores       tag in the tagger's spelling -> 0 to 1
    categories   tag -> the tagger's category

    Thresholds, categories, replacements and the blacklist are applied; implied tags and `most_tags` depend on the
    whole caption (see `compose`).
    """
    is_used = {
        "general": True,
        "character": config.characters,
        "copyright": config.series,
        "artist": config.artists,
        "rating": config.rating,
        "meta": config.meta,
        "quality": config.quality,
    }
    # of the ratings only the one with the highest score is used, whatever that is
    ratings = [tag for tag in scores if categories.get(tag) == "rating"]
    rating = max(ratings, key=scores.__getitem__, default=None)
    tags: dict[str, str] = {}
    # from the highest score down: a replacement that two tags share takes the place of the first
    for tag in sorted(scores, key=scores.__getitem__, reverse=True):
        category = categories.get(tag, "general")
        threshold = config.character_threshold if category == "character" else config.general_threshold
        if not is_used[category] or (tag != rating if category == "rating" else scores[tag] < threshold):
            continue
        for text in _replaced(_in_profile(spelled(tag), category, caption_profiles()[config.profile]), config):
            tags.setdefault(text, vocabulary.kind(text, category))
    return tags


def compose(
    authors: Mapping[str, str],
    removed: Set[str],
    result: Mapping[str, str] | str,
    config: TaggingConfig,
    trigger: str = "",
    captioners: Collection[str] = (),
) -> str:
    """The new caption of an image, made of its present one and a tagger's result.

    authors      tag of the present caption -> who wrote it
    removed      tags that a person removed, a sentence by the pieces between its commas: they stay out
    result       the tags of `tags_from`, or a sentence
    captioners   taggers that write sentences, which stay whole
    """
    triggers = tags_of(trigger)
    own = [tag for tag, by in authors.items() if by == PERSON and tag not in triggers]
    sentence = [tag for tag, by in authors.items() if by in captioners and tag not in triggers]
    tagged = [tag for tag, by in authors.items() if by != PERSON and by not in captioners and tag not in triggers]
    if isinstance(result, str):
        # a new sentence replaces the old one; the tags stay as they are
        sentence = [part for part in tags_of(_sentence(result)) if part not in (*triggers, *own)]
        sentence = [part for part in sentence if not removed >= set(pieces_of(part))]
        tags = [tag for tag in authors if tag in own or tag in tagged]
    else:
        tags = _ordered(own, [tag for tag in result if tag not in (*triggers, *own, *removed)], result, config)
    parts = {"tags": tags, "sentence": sentence}
    order = config.mix.split(", ")
    if "tags" not in order:
        # a person's tags are kept in every mix
        parts["tags"], order = own, ["tags", *order]
    chosen = [tag for part in order for tag in parts[part]]
    # dict.fromkeys: each tag once, at its first place
    return ", ".join(dict.fromkeys([*triggers, *chosen]))


def _sentence(result: str) -> str:
    """A captioner's answer on one line; with commas it begins and ends as a sentence, so that it is read as one."""
    text = " ".join(result.split())
    whole = text[:1].upper() + text[1:] + "." * (not END.search(text[-3:]))
    return whole if len(tags_of(whole)) == 1 < len(tags_of(text)) else text


def _ordered(own: list[str], tagged: list[str], kinds: Mapping[str, str], config: TaggingConfig) -> list[str]:
    """A person's own tags and those of a tagger in the order of the profile, without implied and superfluous ones."""
    if config.without_implied:
        redundant = implied([*own, *tagged])
        tagged = [tag for tag in tagged if tag not in redundant]
    kinds = {tag: kinds[tag] if tag in kinds else vocabulary.kind(tag) for tag in [*own, *tagged]}
    tagged = _by_kind(tagged, kinds, KEPT_FIRST)[: config.most_tags or None]
    return _by_kind([*own, *tagged], kinds, caption_profiles()[config.profile].order)


def _by_kind(tags: list[str], kinds: Mapping[str, str], order: Sequence[str]) -> list[str]:
    """Tags sorted by their kind's place in `order`; those of other kinds follow, and equals keep their order."""
    return sorted(tags, key=lambda tag: order.index(kinds[tag]) if kinds[tag] in order else len(order))


def _in_profile(tag: str, category: str, profile: CaptionProfile) -> str:
    """A spelled tag as the profile writes it: in lower case, with @ before an artist, in its words for ratings."""
    if category == "rating" and profile.own_ratings:
        return vocabulary.safety(tag)
    prefix = profile.prefixes.get(category, "")
    tag = tag.lower() if profile.lower_case else tag
    return tag if tag.startswith(prefix) else prefix + tag


def _replaced(tag: str, config: TaggingConfig) -> list[str]:
    """What is written for a tag: itself, its replacements, or nothing. Patterns may be in Danbooru's spelling."""
    texts = next((tags_of(new) for old, new in config.replacements.items() if matcher(spelled(old))(tag)), [tag])
    return [text for text in texts if not any(matcher(spelled(pattern))(text) for pattern in config.blacklist)]


def _results_of(project: Project, tagger: Tagger) -> ScoreFile | SentenceFile:
    """The stored results of a tagger. Raises TaggerError where they are of another tagger with the same name."""
    if tagger.name in (PERSON, DOCTOR):
        # authors are distinguished by their names
        raise TaggerError(f"A tagger cannot be named {tagger.name!r}: give its folder another name.")
    if tagger.output == "sentence":
        return SentenceFile(project, tagger.name, tagger.prompt)
    results = ScoreFile(project, tagger.name)
    if unknown := results.categories.keys() - tagger.categories.keys():
        raise TaggerError(
            f"{results.file} holds scores of another tagger named {tagger.name!r}, with tags that this one does not "
            f"know ({min(unknown)}, …): give this one's folder another name, or move that file away."
        )
    return results


def _run_tagger(
    editor: CaptionEditor, names: list[str], tagger: Tagger, results: ScoreFile | SentenceFile
) -> Generator[Progress, None, TaggerError | None]:
    """Run a tagger on the images without a result and store each batch; returns an error about those that failed."""
    # by content: identical images are run once
    paths = {editor.samples[name].digest: editor.samples[name].path for name in names}
    remaining = [digest for digest in paths if results.get(digest) is None]
    # By digest.
    failures: dict[str, UserError] = {}
    for begin in range(0, len(remaining), tagger.batch_size):
        batch, images = remaining[begin : begin + tagger.batch_size], {}
        for digest in batch:
            try:
                images[digest] = open_rgb(paths[digest])
            # Damaged or deleted since the scan.
            except ImageError as error:
                failures[digest] = error
        try:
            outputs = dict(zip(images, tagger.run([*images.values()]), strict=True)) if images else {}
        except ImagesRefused as error:
            failures |= dict.fromkeys(images, error)
            done = begin + len(batch)
            # More than MAX_REFUSED failures beyond the images that got a result.
            if len(failures) > done - len(failures) + MAX_REFUSED:
                raise
            continue
        # stored after every batch, so that an interruption loses one batch at most
        if isinstance(results, ScoreFile):
            results.add(outputs, tagger.categories)
        else:
            results.add(outputs)
        yield Progress(what="images scored", done=begin + len(batch), total=len(remaining))
    if not failures:
        return None
    shown = ", ".join(paths[digest].name for digest in list(failures)[:5]) + " …" * (len(failures) > 5)
    return TaggerError(f"{len(failures)} images got no result, all others did: {shown}. {[*failures.values()][-1]}")


def _write_captions(
    project: Project,
    editor: CaptionEditor,
    names: list[str],
    results: ScoreFile | SentenceFile,
    config: TaggingConfig,
) -> Progress:
    captioners, captions = taggers_with_sentences(project), {}
    for name in names:
        result = results.get(editor.samples[name].digest)
        if isinstance(results, ScoreFile):
            result = tags_from(result, results.categories, config)
        trigger = editor.samples[name].trigger
        captions[name] = compose(editor.authors(name), editor.removed_tags(name), result, config, trigger, captioners)
    change = editor.change(f"tagged with {results.tagger}", captions, by=results.tagger)
    return Progress(what="captions", done=len(change.new) if change else 0, total=len(names))
