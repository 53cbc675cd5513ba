"""Settings of other trainers are answered with their name here, or with why there is none."""

from __future__ import annotations

import dataclasses

import pytest

from lorakit import models
from lorakit.cli import main
from lorakit.config import ConfigError, from_dict, types_of
from lorakit.lora import variants
from lorakit.other_trainers import ABSENT, CALLED, answer
from lorakit.run.config import RunConfig, configure

BASE = {"model": {"family": "sd15", "source": "demo"}}


def every_setting() -> set[str]:
    """`part.name` of every setting that some family or adapter type has."""
    parts = [(name, kind) for name, kind in types_of(RunConfig).items() if dataclasses.is_dataclass(kind)]
    parts += [("model", models.config_class(name)) for name in models.names()]
    parts += [("adapter", variants.config_class(name)) for name in variants.trainable()]
    return {f"{part}.{f.name}" for part, kind in parts for f in dataclasses.fields(kind)}


def test_every_name_leads_to_a_setting_that_exists():
    targets = {target.partition(":")[0] for target in CALLED.values()}
    assert targets <= every_setting()
    assert not CALLED.keys() & ABSENT.keys() and len(CALLED) + len(ABSENT) > 150
    assert all(reason.endswith(".") for reason in ABSENT.values())


def test_a_reason_names_only_settings_that_exist():
    words = {word.strip(".,:;()") for reason in ABSENT.values() for word in reason.replace("=", " ").split()}
    parts = {name for name in types_of(RunConfig) if name != "stages"}
    named = {word for word in words if "." in word and word.partition(".")[0] in parts}
    assert named and named <= every_setting()


def refusal(settings: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        configure({**BASE, **settings})
    return str(caught.value).splitlines()


def test_a_name_of_another_trainer_is_answered_wherever_it_stands():
    names = dict.fromkeys([*CALLED, *ABSENT], 1)
    assert refusal(names) == [f"{name} {answer(name)}" for name in names]
    for part in ("adapter", "optimizer", "data"):
        lines = refusal({part: {name: 1 for name in names if f"{part}.{name}" not in every_setting()}})
        assert all(line.startswith(f"{part}.") and "is not a setting" not in line for line in lines)
        assert f"{part}.network_dim is called adapter.rank here." in lines


def test_a_setting_of_another_family_is_not_answered_with_itself():
    for name in ("text_encoder", "text_conditioner"):
        with pytest.raises(ConfigError) as caught:
            configure({"model": {**BASE["model"], name: "x"}})
        assert f"model.{name} is not a setting." in str(caught.value)
    with pytest.raises(ConfigError, match="zero_terminal_snr cannot be set: the noise of a flow model"):
        configure({"model": {"family": "anima", "source": "x", "zero_terminal_snr": "enabled"}})
    assert answer("vae") and answer("vae", "model.") == ""


def test_a_setting_without_its_part_is_answered_with_it():
    with pytest.raises(ConfigError, match="rank is called adapter.rank here"):
        from_dict(RunConfig, {**BASE, "rank": 3})


@pytest.mark.parametrize("verb", [("train",), ("data", "buckets"), ("tag", "show")])
def test_the_terminal_answers_it(tmp_path, capsys, verb):
    assert main([*verb, str(tmp_path), "--set", "network_dim=32"]) == 2
    assert "network_dim is called adapter.rank here." in capsys.readouterr().err
