"""One run: everything that decides its result, frozen before the first step and compared before every later one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from lorakit import models
from lorakit.adapters import AdapterConfig
from lorakit.checkpoint import SaveConfig
from lorakit.config import Config, ConfigError, differences, from_dict, part, read_yaml, setting, to_dict, to_yaml
from lorakit.data import DataConfig
from lorakit.data.scan import Scan
from lorakit.memory import MemoryConfig
from lorakit.optimizers import RATES, OptimizerConfig
from lorakit.precision import PRECISIONS
from lorakit.project import ProjectError, Run, write_json, write_whole
from lorakit.sample import SampleConfig, unfit
from lorakit.schedules import ScheduleConfig
from lorakit.stages import STAGE_PARTS, stage_config
from lorakit.weightings import LossConfig


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """How long and how large the steps are."""

    epochs: int = setting(
        10,
        help="rounds through all pictures; in each a picture is seen as often as its repeats say",
        minimum=1,
        maximum=10_000,
        slider=(1, 100, 1),
        basic=True,
    )
    steps: int = setting(
        0, help="stop after this many steps instead of after the epochs; 0: by epochs", minimum=0, maximum=1_000_000
    )
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


BESIDE = ("steps_per_epoch", "history")  # what a fingerprint holds that is no input


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
    stages: tuple[dict, ...] = setting(
        (),
        help="further stages after the main settings, which are the first: of each what is other there in "
        f"{', '.join(STAGE_PARTS)}, and how long it is, e.g. {{loop: {{epochs: 2}}, schedule: {{name: cosine}}}}",
    )

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
        found += [f"sample.{problem}" for problem in unfit(self.sample, family)]
        return found or list(self._stage_problems())

    def _stage_problems(self) -> Iterator[str]:
        for number, overrides in enumerate(self.stages, 2):
            try:
                stage_config(replace(self, stages=()), overrides, f"stages.{number}.")
            except ConfigError as error:
                yield from str(error).splitlines()

    @cached_property
    def stage_configs(self) -> tuple[RunConfig, ...]:
        """Each stage as a whole config without further stages; the first has the main settings."""
        first = replace(self, stages=()) if self.stages else self
        return first, *(stage_config(first, overrides, f"stages.{i}.") for i, overrides in enumerate(self.stages, 2))

    @property
    def trained(self) -> tuple[str, ...]:
        """The parts of the model that any stage trains; the adapter is on these from the first step on."""
        return tuple(part for part in self.model.rates if any(part in stage.rates for stage in self.stage_configs))

    @property
    def rates(self) -> dict[str, float]:
        """Part of the model -> its learning rate, of all that are trained in the first stage."""
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
    stages = settings.pop("stages")
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
    return settings | ({"stages": stages} if stages else {})


def start(run: Run, config: RunConfig) -> RunConfig:
    """Freeze `config` as the run's, or check it against the one the run began with.

    Parts marked free take their new values; so do all while the run has not begun, e.g. when its base was misspelt.
    What another run's schedule was before it got more epochs is left out.
    Raises RunChanged with the list of differences.
    """
    if (begun := began_with(run)) is not None:
        refuse_changes(run, decisive(begun), decisive(config))
    else:
        config = _without_past(config)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_whole(run.config_file, to_yaml(config))
    return config


def _without_past(config: RunConfig) -> RunConfig:
    settings = to_dict(config)
    for stage in (settings, *settings["stages"]):
        if "schedule" in stage:
            stage["schedule"] = {name: value for name, value in stage["schedule"].items() if name != "past"}
    return configure(settings)


def decisive(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the result, as they are when read back from JSON (lists for tuples); of further stages,
    by number, those that each has of its own.
    """
    parts = [f.name for f in fields(config) if "free" in f.metadata and not f.metadata["free"]]
    settings: dict[str, Any] = {name: to_dict(getattr(config, name)) for name in parts}
    if config.stages:
        settings["stages"] = {
            str(number): _own(stage, overrides)
            for number, (stage, overrides) in enumerate(zip(config.stage_configs[1:], config.stages, strict=True), 2)
        }
    return json.loads(json.dumps(settings))


def _own(stage: RunConfig, overrides: dict[str, Any]) -> dict[str, Any]:
    """A stage's own settings, as they were understood."""
    return {owner: {name: to_dict(getattr(stage, owner))[name] for name in given} for owner, given in overrides.items()}


def frozen(run: Run) -> dict[str, Any]:
    """What a run has begun with, empty while it has not: `config`, `precision`, `base`, `data` and more inputs,
    `steps_per_epoch` of each stage, and `history`, its amendments as {step, changes}.
    """
    if not run.fingerprint_file.exists():
        return {}
    known = json.loads(run.fingerprint_file.read_text(encoding="utf-8"))
    return {"steps_per_epoch": [], "history": [], **known}


def began_with(run: Run) -> RunConfig | None:
    """The config that a run has begun with, None while it has not; config.yaml may have been edited by hand.

    Settings that there were not yet have their defaults, and those that decide nothing, too.
    """
    if not (known := frozen(run)):
        return None
    config = known["config"]
    return configure({**config, "stages": list(config["stages"].values())} if "stages" in config else config)


def inputs_of(config: RunConfig, scans: Sequence[Scan], base: dict[str, str], precision: str) -> dict[str, Any]:
    """Which settings, data (a scan for each stage), base files and precision a run is made of."""
    data = [
        {s.name: f"sha256 {s.digest[:16]}, {s.repeats}x, caption {s.caption!r}" for s in found.samples}
        for found in scans
    ]
    others = {f"data of stage {number}": found for number, found in enumerate(data, 1) if found != data[0]}
    return {"config": decisive(config), "precision": precision, "base": base, "data": data[0], **others}


def check_inputs(run: Run, inputs: dict[str, Any], stages_begun: int) -> None:
    """Refuse (RunChanged) other inputs than those that a run has begun with; anything goes while it has not, and other
    data for stages that have not.
    """
    if not (known := frozen(run)):
        return
    old = {**known, "config": decisive(began_with(run))}
    told = {name for name in {*old, *inputs} if not name.startswith("data of stage ")}
    told |= {f"data of stage {number}" for number in range(2, stages_begun + 1)}
    old, new = ({k: v for k, v in side.items() if k in told - {*BESIDE}} for side in (old, inputs))
    refuse_changes(run, old, new)


def freeze_inputs(run: Run, inputs: dict[str, Any], steps_per_epoch: Sequence[int]) -> None:
    """Remember what a run is made of, once all of it could be loaded: from here on it has begun."""
    known = frozen(run)
    made = {**inputs, "steps_per_epoch": list(steps_per_epoch), "history": known["history"] if known else []}
    if made != known:
        write_json(run.fingerprint_file, made)


def amend(run: Run, config: RunConfig, step: int, steps_per_epoch: Sequence[int]) -> None:
    """Give a run that has begun another config from `step` on, and remember when and what; config.yaml last, so that a
    run which was cut off in between is amended again. What may change, `lorakit.extend` knows.
    """
    known = frozen(run)
    if changes := differences(decisive(began_with(run)), decisive(config)):
        history = [*known["history"], {"step": step, "changes": changes}]
        made = {"config": decisive(config), "history": history, "steps_per_epoch": list(steps_per_epoch)}
        write_json(run.fingerprint_file, {**known, **made})
    write_whole(run.config_file, to_yaml(config))


def refuse_changes(run: Run, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise RunChanged naming every difference and the two ways on; return when there is none."""
    found = differences(old, new)
    if found:
        shown = "\n".join(f"  {line}" for line in found[:20]) + (
            f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
        )
        raise RunChanged(
            f"Run {run.name!r} cannot go on: it was started with something else (old -> new).\n{shown}\n"
            "There are two ways on. Resume this run: put back what it was, and train again. Or start a new run, under "
            "another name; from these weights: in a notebook going_on(run), in a terminal "
            f"lorakit train {run.project.folder} --run NAME --from-weights {_newest(run)}.\n"
            "For more epochs or another stage there are more_epochs(run, 20) and lorakit extend."
        )


def _newest(run: Run) -> str:
    """The newest LoRA file of a run, as a person would type it."""
    return str(run.lora_file(run.lora_steps()[-1])) if run.lora_steps() else "FILE"
