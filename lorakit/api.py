"""The public functions that are not one of a room's own: the same as the commands, for a script or a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.config import from_dict, to_dict
from lorakit.project import Project, Run
from lorakit.run.config import read_config, with_save

if TYPE_CHECKING:
    from PIL import Image

    from lorakit.events import Progress
    from lorakit.examine import Report


def open_run(project: str | Path | Project, name: str = "run1") -> Run:
    """A run that was created before. Raises ProjectError naming the project's runs when it is not there.

    >>> open_run("my-project").lora_steps()
    [2, 4]
    """
    run = _project(project).run(name)
    read_config(run)
    return run


def export(run: Run, step: int | None = None, to: str | Path = ".", **about: Any) -> Path:
    """Check a LoRA file of a run on the base model once more, then copy it; returns the copy.

    step    which of `run.lora_steps()`; the newest when None
    to      a file name in .safetensors, or a folder, which is made if need be
    about   what the copy says about itself: author, description, license, tags, usage_hint, thumbnail (True: the newest
            sample), dataset_details (False: no tag counts and folder names); the run's `save` settings are the defaults

    Raises ProjectError when there is no such file, LoraFileError when it does not fit the base model, ConfigError for
    other settings.

    >>> export(open_run("my-project"), to="files").name
    'my-project-run1-000004.safetensors'
    """
    from lorakit.generation.generator import deliver

    return deliver(run, _step(run, step), to, with_save(read_config(run), {"save": about}))[0]


def generate(run: Run, prompt: str, *, step: int | None = None, strength: float = 1.0, **sampling: Any) -> Image.Image:
    """One image with a LoRA file of a run.

    step        which of `run.lora_steps()`; the newest when None
    strength    0 is the base model alone, 1 is as trained
    prompt      with weights and kohya's flags, see `lorakit.diffusion.prompts`
    sampling    width, height, steps, guidance_scale, sampler, seed, negative_prompt; the run's sample settings are the
                defaults

    Loads the base model each time: for many images take `grid`. Raises ConfigError for other settings.

    >>> generate(open_run("my-project"), "mofurin, 1girl", steps=2, seed=1).size
    (128, 128)
    """
    from lorakit.diffusion.prompts import parse
    from lorakit.generation.generator import Generator
    from lorakit.run.sampling import SamplingConfig, requested

    sample = to_dict(read_config(run).sample)
    defaults = {field.name: sample[field.name] for field in fields(SamplingConfig)}
    settings = from_dict(SamplingConfig, {**defaults, **sampling})
    generator = Generator(run)
    generator.use(_step(run, step), strength)
    read = parse(prompt)
    return generator.generate(read, requested(read, settings, generator.config.model)[0])


def check_dataset(project: str | Path | Project, settings: dict[str, Any] | None = None) -> Report:
    """Everything about images and captions that spoils training, worst first.

    settings    nested, as for `create_run`: `data` says which folder and trigger, `model` for whose captions

    >>> [finding.kind for finding in check_dataset("my-project").findings if finding.severity == "error"]
    []
    """
    from lorakit.data import DataConfig
    from lorakit.examine import examine

    settings = settings or {}
    if "model" not in settings:
        return examine(_project(project), from_dict(DataConfig, settings.get("data", {}), "data."))
    from lorakit.run.config import configure

    config = configure(settings)
    return examine(_project(project), config.data, config.model, config.loop)


def tag(
    project: str | Path | Project,
    tagger: str = "wd14",
    *,
    trigger: str = "",
    settings: dict[str, Any] | None = None,
    captions: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """Write captions for images that have none; nothing hand-written or locked is changed, and it can be undone.

    tagger      wd14 (tags), vlm (sentences) or server (a chat model behind an OpenAI-compatible address)
    settings    of the tagger, such as {"source": "SmilingWolf/wd-vit-tagger-v3"}
    captions    how its results become captions, such as {"general_threshold": 0.5}

    Yields Progress; stopped anywhere, the same call resumes. Raises TaggerError, and ConfigError for wrong settings.

    >>> [progress.total for progress in tag("my-project", settings={"source": "demo"})][-1]
    0
    """
    from lorakit import taggers
    from lorakit.data import DataConfig
    from lorakit.tags.tagging import TaggingConfig
    from lorakit.tags.tagging import tag as run_tagger

    config = from_dict(TaggingConfig, captions or {}, "captions.")
    yield from run_tagger(_project(project), DataConfig(trigger=trigger), taggers.load(tagger, settings or {}), config)


def download_model(source: str) -> Path:
    """The local file or folder of a model, downloaded and verified if it is not here yet.

    source      "demo", a path, a Hugging Face id (`owner/name` or `owner/name/file.safetensors`), a ModelScope id
                (`modelscope:owner/name`) or a URL; an interrupted download resumes

    Raises SourceError when it cannot be had, ModelFileError when it is damaged.

    >>> download_model("demo").name
    'base'
    """
    from lorakit.hub import fetch

    return fetch(source)


def _project(project: str | Path | Project) -> Project:
    return project if isinstance(project, Project) else Project(project)


def _step(run: Run, step: int | None) -> int:
    # 0 has no file: the message names the steps that have one
    return max(run.lora_steps(), default=0) if step is None else step
