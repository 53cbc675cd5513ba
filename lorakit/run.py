"""One run: everything that decides its result, frozen before the first step and compared before every later one."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from lorakit import models
from lorakit.adapters import AdapterConfig
from lorakit.checkpoint import SaveConfig
from lorakit.config import Config, ConfigError, differences, from_dict, part, read_yaml, setting, to_dict, to_yaml
from lorakit.data import DataConfig, buckets
from lorakit.data.plan import Plan
from lorakit.data.scan import Scan
from lorakit.memory import MemoryConfig
from lorakit.optimizers import RATES, OptimizerConfig
from lorakit.precision import PRECISIONS
from lorakit.project import ProjectError, Run, write_json, write_whole
from lorakit.randomness import seed_of
from lorakit.sample import SampleConfig, unfit
from lorakit.schedules import ScheduleConfig
from lorakit.weightings import LossConfig


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """How long and how large the steps are."""

    epochs: int = setting(
        10,
        help="how often every picture is seen repeats times",
        minimum=1,
        maximum=10_000,
        slider=(1, 100, 1),
        basic=True,
    )
    steps: int = setting(0, help="stop after this many steps instead of after the epochs; 0: by epochs", minimum=0)
    batch_size: int = setting(
        1, help="pictures at once; more need more memory", minimum=1, maximum=256, slider=(1, 16, 1)
    )
    gradient_accumulation_steps: int = setting(
        1,
        help="batches summed up for one step: a larger batch without more memory",
        minimum=1,
        maximum=256,
        slider=(1, 16, 1),
        label="batches a step",
    )
    precision: str = setting(
        "auto", help="auto: bf16 on newer GPUs, fp16 on older ones, fp32 on a CPU", choices=PRECISIONS
    )
    seed: int = setting(42, help="another seed is another run of the same settings", minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """Everything that decides a run, by part; `memory`, `save` and `sample` may change between sittings."""

    model: Config = part(tag="family", variants=models.config_class, help="the base model")
    data: DataConfig = part(DataConfig, help="the pictures and captions")
    adapter: AdapterConfig = part(AdapterConfig, help="what is trained")
    loss: LossConfig = part(LossConfig, help="what is minimised")
    optimizer: OptimizerConfig = part(OptimizerConfig, help="how weights follow gradients")
    schedule: ScheduleConfig = part(ScheduleConfig, help="how the learning rate moves")
    loop: LoopConfig = part(LoopConfig, help="how long")
    memory: MemoryConfig = part(MemoryConfig, help="what is given for memory", free=True)
    save: SaveConfig = part(SaveConfig, help="when to save", free=True)
    sample: SampleConfig = part(SampleConfig, help="when to paint samples", free=True)

    def conflicts(self) -> list[str]:
        family = self.model
        found = [
            f"{name} cannot be used with {family.family}: {reason}"
            for name, reason in family.refused.items()
            if "." in name and not name.startswith("sample.") and _is_changed(self, *name.split("."))
        ]
        for rate in set(RATES) - set(family.rates.values()):
            if getattr(self.optimizer, rate) and f"optimizer.{rate}" not in family.refused:
                found.append(f"optimizer.{rate} cannot be used with {family.family}: it has no such part.")
        sides = {"data.bucket_reso_steps": self.data.bucket_reso_steps} if self.data.enable_bucket else {}
        sides |= {"data.resolution": self.data.resolution}
        found += [
            f"{name} is {side}; with {family.family} it must be a multiple of {family.resolution_multiple} px."
            for name, side in sides.items()
            if side % family.resolution_multiple
        ]
        if self.save.form not in ("auto", *family.forms):
            found.append(f"save.form is {self.save.form}; {family.family} has {', '.join(family.forms)}.")
        return found + [f"sample.{problem}" for problem in unfit(self.sample, family)]

    @property
    def rates(self) -> dict[str, float]:
        """Part of the model -> its learning rate, of all that are trained."""
        found = {part: getattr(self.optimizer, name) for part, name in self.model.rates.items()}
        return {part: rate for part, rate in found.items() if rate}

    @property
    def form(self) -> str:
        """The form of exported files."""
        return self.model.forms[0] if self.save.form == "auto" else self.save.form


def _is_changed(config: Config, part: str, name: str) -> bool:
    settings = getattr(config, part)
    return getattr(settings, name) != settings.__dataclass_fields__[name].default


def configure(settings: dict[str, Any], card: str = "") -> RunConfig:
    """The config that settings describe, over what suits a GPU (a name of the family's `cards`, "" for none), over what
    the family starts from, over every setting's own default.

    Raises ConfigError with a sentence for every setting that is wrong or does not go with the family.
    """
    model = settings.get("model", {})
    if not isinstance(model, dict):
        raise ConfigError(f"model is {model!r}, but a table is wanted: model.family and model.source.")
    if "family" not in model:
        raise ConfigError(f"model.family is missing; known families are {', '.join(models.names())}.")
    family = models.config_class(model["family"])
    if card and card not in family.cards:
        raise ConfigError(f"There is no card {card!r} for {family.family}; its cards are {', '.join(family.cards)}.")
    merged = dict(settings)
    for under in (family.cards[card] if card else {}, family.defaults):
        for name, values in under.items():
            given = merged.get(name, {})
            merged[name] = {**values, **given} if isinstance(given, dict) else given
    return from_dict(RunConfig, merged)


class RunChanged(ProjectError):
    """A run was asked to go on with another config, data set or base than it began with."""


def read_config(run: Run) -> RunConfig:
    """The config that a run was started with. Raises ProjectError when there is no such run."""
    if not run.exists():
        known = ", ".join(r.name for r in run.project.runs())
        raise ProjectError(
            f"There is no run {run.name!r} in {run.project.folder}"
            + (f"; its runs are {known}." if known else ", which has no runs yet.")
        )
    return configure(read_yaml(run.config_file))


def settings_of(run: Run, card: str = "") -> dict[str, Any]:
    """The settings that the next sitting of a run starts from, to be changed and given to `configure` with `card`.

    All of them for a run that has begun. While it has not, those that were chosen: another family or card may bring
    others of its own.
    """
    config = read_config(run)
    family, cards = config.model, config.model.cards
    settings = to_dict(config)
    if not run.fingerprint_file.exists():
        plain = to_dict(configure({"model": {"family": family.family, "source": family.source}}))
        settings = {
            owner: {name: value for name, value in values.items() if value != plain[owner][name]}
            for owner, values in settings.items()
        }
        settings["model"] |= {"family": family.family, "source": family.source}
        named = [values for known in cards.values() for values in known.items()] if card else []
    else:
        named = list(cards.get(card, {}).items())
    for owner, values in named:
        settings[owner] = {name: value for name, value in settings[owner].items() if name not in values}
    return settings


def start(run: Run, config: RunConfig) -> RunConfig:
    """Freeze `config` as the run's, or check it against the one the run began with.

    Parts marked free take their new values; so do all while the run has not begun, e.g. when its base was misspelt.
    Raises RunChanged with the list of differences.
    """
    if run.exists() and run.fingerprint_file.exists():
        refuse_changes(run, json.loads(run.fingerprint_file.read_text(encoding="utf-8"))["config"], decisive(config))
    run.folder.mkdir(parents=True, exist_ok=True)
    write_whole(run.config_file, to_yaml(config))
    return config


def decisive(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the result, as they are when read back from JSON (lists for tuples)."""
    settings = {f.name: to_dict(getattr(config, f.name)) for f in fields(config) if not f.metadata["free"]}
    return json.loads(json.dumps(settings))


def inputs_of(config: RunConfig, found: Scan, base: dict[str, str], precision: str) -> dict[str, Any]:
    """Which settings, data, base files and precision a run is made of."""
    return {
        "config": decisive(config),  # config.yaml may have been edited by hand
        "precision": precision,  # auto may mean another one on another GPU
        "base": base,
        "data": {s.name: f"sha256 {s.digest[:16]}, {s.repeats}x, caption {s.caption!r}" for s in found.samples},
    }


def check_inputs(run: Run, inputs: dict[str, Any]) -> None:
    """Refuse (RunChanged) other inputs than those that a run has begun with; anything goes while it has not."""
    if run.fingerprint_file.exists():
        refuse_changes(run, json.loads(run.fingerprint_file.read_text(encoding="utf-8")), inputs)


def freeze_inputs(run: Run, inputs: dict[str, Any]) -> None:
    """Remember what a run is made of, once all of it could be loaded: from here on it has begun."""
    if not run.fingerprint_file.exists():
        write_json(run.fingerprint_file, inputs)


def refuse_changes(run: Run, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise RunChanged naming every difference and the two ways on; return when there is none."""
    found = differences(old, new)
    if found:
        shown = "\n".join(f"  {line}" for line in found[:20]) + (
            f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
        )
        raise RunChanged(
            f"Run {run.name!r} cannot go on: it was started with something else (old -> new).\n{shown}\n"
            "Either put back what it was and train again to resume it, or start a new run under another name."
        )


def make_plan(config: RunConfig, found: Scan) -> Plan:
    """All steps of a run over its samples."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, sample in enumerate(found.samples):
        size = buckets.fit(sample.width, sample.height, config.data).size
        by_size.setdefault(size, []).extend([index] * sample.repeats)
    loop = config.loop
    return Plan(
        tuple(tuple(by_size[size]) for size in sorted(by_size)),
        loop.batch_size,
        loop.gradient_accumulation_steps,
        loop.epochs,
        loop.steps,
        seed_of(loop.seed, "plan"),
    )
