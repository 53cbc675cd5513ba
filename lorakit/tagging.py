"""From what a tagger says of pictures to captions, written through the tag book."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorakit.config import Config, ConfigError, from_dict, read_yaml, setting, to_dict
from lorakit.data import DataConfig
from lorakit.events import Progress
from lorakit.project import Project, write_whole

PROFILES = ("sd", "anima")
MIXES = ("tags, sentence", "sentence, tags", "tags", "sentence")


@dataclass(frozen=True, kw_only=True)
class TaggingConfig(Config):
    """What of a tagger's answers gets into captions, and how; nothing here asks the tagger again."""

    which: str = setting(
        "missing",
        help="pictures that get captions: those without one of this kind, or all that no person wrote or locked",
        choices=("missing", "unlocked"),
        label="pictures",
        basic=True,
    )
    profile: str = setting(
        "sd",
        help="order and spelling of tags: sd (SD 1.5, SDXL) has trigger, number of people, character, then the surest; "
        "anima has quality, number of people, character, series, @artist, then the rest, all in lower case",
        choices=PROFILES,
        basic=True,
    )
    mix: str = setting(
        "tags, sentence",
        help="what a caption holds when taggers of both kinds were asked, and in which order",
        choices=MIXES,
        label="tags and sentence",
    )
    general_threshold: float = setting(
        0.35,
        help="tags of at least this score are used, but for characters",
        minimum=0.05,
        maximum=1,
        slider=(0.05, 0.95, 0.05),
        label="threshold",
        basic=True,
    )
    character_threshold: float = setting(
        0.85,
        help="characters of at least this score are used",
        minimum=0.05,
        maximum=1,
        slider=(0.05, 1, 0.05),
        label="threshold of characters",
        basic=True,
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
        label="no doubles",
    )
    most_tags: int = setting(0, help="at most this many tags, surest ones; 0: all", minimum=0, maximum=500)


def read_tagging(project: Project) -> tuple[str, dict[str, Any], TaggingConfig]:
    """(tagger, its settings, what is made of its answers) as `tagging.yaml` keeps them, or what is set at first.

    Raises ConfigError for a damaged file.
    """
    file = project.folder / "tagging.yaml"
    told = {"tagger": "wd14", "settings": {}, "captions": {}} | (read_yaml(file) if file.exists() else {})
    if not isinstance(told["tagger"], str) or not isinstance(told["settings"], dict):
        raise ConfigError(f"{file}: `tagger` is a name and `settings` a table; mend the file or remove it.")
    return told["tagger"], told["settings"], from_dict(TaggingConfig, told["captions"], "captions.")


def write_tagging(project: Project, tagger: str, settings: dict[str, Any], config: TaggingConfig) -> None:
    """Keep what the user chose in `tagging.yaml`."""
    import yaml

    told = {"tagger": tagger, "settings": settings, "captions": to_dict(config)}
    write_whole(project.folder / "tagging.yaml", yaml.safe_dump(told, sort_keys=False, allow_unicode=True))


def tag(project: Project, data_config: DataConfig, tagger: Any, config: TaggingConfig) -> Iterator[Progress]:
    """Ask a tagger (see lorakit/taggers) of each picture that needs it and was never shown to it, then write captions
    through the tag book, as one change by `tagger.name`.

    Yields Progress of "pictures asked" (skipped when all were asked before) and at last one of "captions": `done` of
    `total` were written, the rest stays as it is (locked, or the same). Cut anywhere, the next call goes on.
    """
    raise NotImplementedError
    yield
