"""What most likely wastes a run is said before it, in the form and in the terminal alike."""

from __future__ import annotations

import pytest

from lorakit import models, presets
from lorakit.optimizers import OPTIMIZERS
from lorakit.run.advice import says_v, setting_warnings
from lorakit.run.config import configure


def config_of(family="sd15", source="x", **parts):
    parts.setdefault("model", {})
    return configure({**parts, "model": {"family": family, "source": source, **parts["model"]}})


# settings -> the setting that the one warning is about; a run of 10 epochs of 20 steps
WASTED = [
    ({"optimizer": {"learning_rate": 1.0}}, "optimizer.learning_rate is 1; with adamw about 0.0001"),
    ({"optimizer": {"learning_rate": 1e-2}}, "optimizer.learning_rate is 0.01;"),
    ({"optimizer": {"learning_rate": 1e-6}}, "far below it nothing is learned"),
    ({"optimizer": {"learning_rate": 1e-4, "text_encoder_lr": 0.1}}, "optimizer.text_encoder_lr is 0.1;"),
    ({"optimizer": {"name": "prodigy", "learning_rate": 1e-4}}, "with prodigy about 1 is usual"),
    (
        {"adapter": {"rank": 8, "alpha": 16}},
        "adapter.alpha is 16, above adapter.rank (8): the change is multiplied by 2",
    ),
    ({"schedule": {"warmup": 200}}, "schedule.warmup is 200 steps, and there are 200"),
    ({"schedule": {"warmup": 50, "steps": 50}}, "schedule.warmup is 50 steps"),
    ({"save": {"every_epochs": 11}}, "save.every_epochs is 11, and the run has 10 epochs"),
    ({"save": {"every_steps": 201}}, "save.every_steps is 201, and the run has 200 steps"),
    ({"sample": {"prompts": ["a"], "every_epochs": 20}}, "sample.every_epochs is 20"),
    ({"sample": {"prompts": ["a"], "every_steps": 300}}, "sample.every_steps is 300"),
    (
        {"source": "models/noobaiXL_vPred10.safetensors", "model": {"prediction_type": "epsilon"}},
        "model.prediction_type",
    ),
]
FINE = [
    {},
    {"optimizer": {"learning_rate": 1e-3}},
    {"optimizer": {"learning_rate": 1e-4, "text_encoder_lr": 1e-6}},
    {"optimizer": {"name": "prodigy", "learning_rate": 1.0}},
    {"adapter": {"rank": 8, "alpha": 0}},
    {"schedule": {"warmup": 0.9}},
    {"schedule": {"warmup": 199}},
    {"save": {"every_epochs": 10, "every_steps": 200}},
    {"sample": {"every_epochs": 20}},
    {"source": "vpred/model.safetensors", "model": {"prediction_type": "epsilon"}},
]


@pytest.mark.parametrize(("settings", "warning"), WASTED)
def test_what_wastes_a_run_is_one_warning(settings, warning):
    (line,) = setting_warnings(config_of(**settings), [20])
    assert warning in line and line.endswith(".")


@pytest.mark.parametrize("settings", FINE)
def test_what_is_usual_is_none(settings):
    assert setting_warnings(config_of(**settings), [20]) == []


def test_the_defaults_of_every_family_optimizer_and_preset_are_none(family):
    for name, row in OPTIMIZERS.items():
        own = {"optimizer": {"name": name, "learning_rate": row.learning_rate}}
        assert setting_warnings(config_of(family, **own), [20]) == []
    assert setting_warnings(config_of(family), [20]) == []
    for row in presets.presets(family):
        settings = presets.settings_for(row, 40)
        config = configure({"model": {"family": family, "source": "x"}, **settings})
        assert setting_warnings(config, [40]) == [], row
    assert family in models.names()


def test_every_stage_is_looked_at_and_what_depends_on_the_length_needs_it():
    stages = [{"loop": {"epochs": 1}, "schedule": {"warmup": 30}}]
    config = config_of(stages=stages)
    assert "schedule.warmup is 30 steps, and there are 20" in setting_warnings(config, [20, 20])[0]
    assert setting_warnings(config) == []


@pytest.mark.parametrize(
    "name", ["noobaiXL_vPred10.safetensors", "a/x-v-pred", "NoobAI-XL-Vpred-v1.0/", "C:\\m\\v_param.ckpt"]
)
def test_a_name_that_says_v(name):
    assert says_v(name) and not says_v("vpred/animagine.safetensors") and not says_v("owner/AnyLoRA")
