"""Settings check themselves: every Config of the package, every field of it."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import typing
from dataclasses import MISSING, FrozenInstanceError

import pytest
import yaml
from each import each

import lorakit
from lorakit import models
from lorakit.config import (
    Config,
    ConfigError,
    assign,
    choices_of,
    differences,
    from_dict,
    read_yaml,
    to_dict,
    to_yaml,
)
from lorakit.data import DataConfig
from lorakit.diffusion.weightings import LossConfig
from lorakit.lora.variants import AdapterConfig
from lorakit.optimizers import OptimizerConfig
from lorakit.run.config import RunConfig, configure
from lorakit.run.sampling import SampleConfig
from lorakit.schedules import ScheduleConfig


def every_config() -> list[type[Config]]:
    for module in pkgutil.walk_packages(lorakit.__path__, "lorakit."):
        if not module.name.startswith("lorakit.demo"):
            importlib.import_module(module.name)
    found, todo = [], [Config]
    while todo:
        children = todo.pop().__subclasses__()
        found += [c for c in children if c.__module__.startswith("lorakit.")]
        todo += children
    return sorted(found, key=lambda c: f"{c.__module__}.{c.__qualname__}")


CONFIGS = every_config()
FIELDS = [(c, f) for c in CONFIGS for f in dataclasses.fields(c) if "variants" not in f.metadata]
FIELD_IDS = [f"{c.__module__}.{c.__qualname__}.{f.name}" for c, f in FIELDS]
BASE = {"family": "sd15", "source": "demo"}


def least(config_class: type[Config]) -> dict:
    """The settings that a Config cannot do without."""
    needed = [f for f in dataclasses.fields(config_class) if f.default is MISSING and f.default_factory is MISSING]
    return {f.name: BASE if "variants" in f.metadata else "text" for f in needed}


def refusal(config_class: type[Config], data: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict(config_class, data)
    return str(caught.value)


def test_all_parts_of_a_run_are_among_the_configs_tested_here():
    values = vars(from_dict(RunConfig, {"model": BASE})).values()
    assert {type(value) for value in values if not isinstance(value, tuple)} < set(CONFIGS)
    assert {models.config_class(name) for name in models.names()} < set(CONFIGS)


@each(FIELDS, FIELD_IDS)
def test_a_misspelt_setting_is_refused_with_the_right_one(config_class, f):
    message = refusal(config_class, {**least(config_class), f.name + f.name[-1]: 1})
    assert f"{f.name}{f.name[-1]} is not a setting. Did you mean {f.name}?" in message


@each(FIELDS, FIELD_IDS)
def test_a_setting_has_a_line_of_help_and_refuses_another_type_with_value_and_help(config_class, f):
    assert f.metadata["help"].strip() and "\n" not in f.metadata["help"]
    wanted = typing.get_type_hints(config_class)[f.name]
    for wrong in (None, object(), [3.5], "three" if wanted is not str else 3, True if wanted is not bool else 1):
        message = refusal(config_class, {**least(config_class), f.name: wrong})
        assert f"{f.name} is {tuple(wrong) if isinstance(wrong, list) else wrong!r}, expected " in message
        assert f.metadata["help"] in message


NUMBERS = [(c, f) for c, f in FIELDS if typing.get_type_hints(c)[f.name] in (int, float)]


@each(NUMBERS, [f"{c.__module__}.{f.name}" for c, f in NUMBERS])
def test_a_number_has_a_closed_range_that_the_refusal_names(config_class, f):
    low, high = f.metadata["range"]
    wrong = [limit + beyond for limit, beyond in ((low, -1), (high, 1)) if limit is not None]
    if typing.get_type_hints(config_class)[f.name] is float:
        wrong += [math.nan, math.inf]
    for value in wrong if not f.metadata["choices"] else ():
        message = refusal(config_class, {**least(config_class), f.name: value})
        assert f"{f.name} is {value!r}; allowed is " in message
        assert (
            all(str(limit) in message for limit in (low, high) if limit is not None) and f.metadata["unit"] in message
        )
    for value in (low, high):
        if value is not None and not f.metadata["choices"]:
            try:
                from_dict(config_class, {**least(config_class), f.name: value})
            except ConfigError as error:  # a limit may contradict another setting, but it is in range
                assert f"{f.name} is {value!r}; allowed" not in str(error)


CHOICES = [(c, f) for c, f in FIELDS if choices_of(f)]


@each(CHOICES, [f"{c.__module__}.{f.name}" for c, f in CHOICES])
def test_a_choice_names_what_is_allowed(config_class, f):
    allowed = choices_of(f)
    wrong = 10**9 if isinstance(allowed[0], int) else allowed[0] + "x"
    message = refusal(config_class, {**least(config_class), f.name: wrong})
    assert f"{f.name} is {wrong!r}; allowed are {', '.join(map(str, allowed))}." in message
    assert isinstance(wrong, int) or "Did you mean" in message


def test_python_3_10_reads_the_types_of_every_config():
    # it resolves "ClassVar" only with the type that is held
    assert not [c for c in CONFIGS if "ClassVar" in c.__annotations__.values()]


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: f"{c.__module__}.{c.__qualname__}")
def test_a_config_is_frozen_and_survives_yaml(config_class, tmp_path):
    config = from_dict(config_class, least(config_class))
    with pytest.raises(FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)
    (tmp_path / "c.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert from_dict(config_class, read_yaml(tmp_path / "c.yaml")) == config


def test_lists_tables_tiny_numbers_and_any_script_come_back_from_yaml(tmp_path):
    prompts = ("mofu, 帽子: [a, b]", "", "no", "1e-4", "it's\n two lines", "#1", "2024-01-01")
    changed = {
        "model": BASE,
        "data": {"trigger": "1e4"},
        "optimizer": {"learning_rate": 3e-7, "args": {"betas": [0.9, 0.99], "eps": 1e-8, "more": {"a": [1, None]}}},
        "sample": {"prompts": list(prompts)},
    }
    config = from_dict(RunConfig, changed)
    (tmp_path / "c.yaml").write_text(to_yaml(config), encoding="utf-8")
    again = from_dict(RunConfig, read_yaml(tmp_path / "c.yaml"))
    assert again == config
    assert again.sample.prompts == prompts and again.optimizer.learning_rate == 3e-7 and again.data.trigger == "1e4"
    assert again.optimizer.args == changed["optimizer"]["args"]


def test_a_tuple_in_a_table_is_the_list_that_is_saved():
    config = OptimizerConfig(args={"betas": (0.9, 0.99)})
    assert differences(to_dict(config), to_dict(from_dict(OptimizerConfig, to_dict(config)))) == []
    assert to_dict(config)["args"] == {"betas": [0.9, 0.99]}


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "+1e-4", "0.0001", ".1e-3", "10e-5"])
def test_a_rate_is_read_as_a_number_however_it_is_written(text, tmp_path):
    file, settings = tmp_path / "c.yaml", {}
    file.write_text(f"learning_rate: {text}\nargs: {{weight_decay: {text}, betas: [0.9, {text}]}}")
    config = from_dict(OptimizerConfig, read_yaml(file))
    assert config.learning_rate == config.args["weight_decay"] == config.args["betas"][1] == 1e-4
    assign(settings, "optimizer.learning_rate", text)
    assert from_dict(OptimizerConfig, settings["optimizer"]).learning_rate == 1e-4


AS_THEY_STAND = (
    *(
        "@name",
        "2b #nier",
        "1girl, (smile:1.2), [hat]",
        "#tag",
        "a: b",
        "C:\\x",
        "/data/#1/x",
        "yes",
        "null",
        "1e3",
        "~",
    ),
    *("'quoted'", '"', "{a|b}", "a=b, c", "&x", "*", "!x", "- a", "[x", "%", "\\(", "12", " ", "", "日本 #1", "a\nb"),
)
TYPED = [
    *((DataConfig, "trigger", text, text) for text in AS_THEY_STAND),
    *((AdapterConfig, "rank", text, 32) for text in ("32", " 32", "32.0", "3.2e1")),
    *((OptimizerConfig, "learning_rate", text, 1e-4) for text in ("1e-4", "0.0001", "1E-04")),
    *((DataConfig, "flip_aug", text, True) for text in ("true", "Yes", "on", "TRUE")),
    *((DataConfig, "flip_aug", text, False) for text in ("false", "no", "off")),
    (SampleConfig, "prompts", "[]", ()),
    (SampleConfig, "prompts", "", ()),
    (SampleConfig, "prompts", "[a, b c]", ("a", "b c")),
    (SampleConfig, "prompts", "1girl, (smile:1.2)", ("1girl, (smile:1.2)",)),
    (SampleConfig, "prompts", "[hat], b", ("[hat], b",)),
    (
        SampleConfig,
        "prompts",
        """["a, b", 'it''s, x', 2b #nier, @c, yes, C:\\x]""",
        ("a, b", "it's, x", "2b #nier", "@c", "yes", "C:\\x"),
    ),
    (OptimizerConfig, "args", "{betas: [0.9, 0.95], eps: 1e-8}", {"betas": (0.9, 0.95), "eps": 1e-8}),
    (DataConfig, "triggers", "{10_miku: miku, a: 1e3}", {"10_miku": "miku", "a": "1e3"}),
    (DataConfig, "triggers.10_miku", "@miku #1", {"10_miku": "@miku #1"}),
    (OptimizerConfig, "args.weight_decay", "1e-2", {"weight_decay": 1e-2}),
]


@pytest.mark.parametrize(("config_class", "name", "text", "value"), TYPED)
def test_a_typed_text_means_what_the_type_of_its_setting_says(config_class, name, text, value):
    settings = {"part": {"kept": 1}}
    assign(settings, f"part.{name}", text)
    assert settings["part"].pop("kept") == 1
    config = from_dict(config_class, settings["part"])
    read = getattr(config, name.partition(".")[0])
    assert read == value or (isinstance(read, dict) and to_dict(config)["args"] == _as_lists(value))
    # nothing of a typed text is left in it: it goes into files as it is
    assert type(read) is type(value) and from_dict(config_class, yaml.safe_load(to_yaml(config))) == config


def _as_lists(table: dict) -> dict:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in table.items()}


def test_parts_typed_as_tables_keep_the_defaults_of_the_family():
    settings = {"model": {"family": "sdxl", "source": "x"}}
    assign(settings, "adapter", "{rank: 8}")
    assign(settings, "stages", "[{loop: {epochs: 2}}]")
    assert configure(settings).adapter.rank == 8 and configure(settings).stages == ({"loop": {"epochs": 2}},)


@pytest.mark.parametrize(
    ("config_class", "name", "text", "problem"),
    [
        (AdapterConfig, "rank", "high", "rank is 'high', expected an integer"),
        (AdapterConfig, "rank", "2.5", "rank is 2.5, expected an integer"),
        (AdapterConfig, "rank", "", "rank is '', expected an integer"),
        (AdapterConfig, "alpha", "nan", "alpha is nan; allowed is"),
        (DataConfig, "flip_aug", "1", "flip_aug is '1', expected true or false"),
        (OptimizerConfig, "args", "{a", "args: '{a' is not YAML"),
        (OptimizerConfig, "args", "2024-13-45", "args: '2024-13-45' is not YAML"),
    ],
)
def test_a_typed_text_that_does_not_fit_is_refused(config_class, name, text, problem):
    settings = {}
    assign(settings, name, text)
    assert problem in refusal(config_class, settings)


def test_a_setting_below_a_value_is_refused():
    with pytest.raises(ConfigError, match="rank.more is not a setting: rank is a value"):
        assign({"rank": 3}, "rank.more", "1")


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"a: [1", "is not YAML"),
        (b"- a\n- b", "not a table of settings"),
        (b"hello", "not a table of settings"),
        (b"a: \xff\xfe", "save it as UTF-8"),
        (b"a: 2024-13-45", "is not YAML"),
        (None, "No such file"),
        ("folder", "is a folder, not a file"),
    ],
)
def test_a_settings_file_that_is_none_is_refused_by_name(content, shown, tmp_path):
    file = tmp_path / "c.yaml"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    assert shown in str(caught.value) and str(file) in str(caught.value)


def test_an_empty_settings_file_and_one_with_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"")
    assert read_yaml(tmp_path / "c.yaml") == {}
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfrank: 3")
    assert read_yaml(tmp_path / "c.yaml") == {"rank": 3}


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"model": BASE, "data": {"repeats": 0}, "loop": {"epochs": 0}}, "data.repeats is 0"),
        ({"model": BASE, "data": {"repeats": 0, "flip": 1}, "loop": {"epochs": 0}}, "data.flip is not a setting"),
        ({"model": BASE, "data": {"repeats": 0}, "loop": {"epochs": 0}, "x": 1}, "loop.epochs is 0"),
        ({"model": BASE, "adapter": 16}, "adapter is 16, expected a table of settings"),
        ({"model": {"source": "demo"}}, "model.family is missing"),
        ({"model": {"family": "sd15"}}, "model.source is missing"),
        ({"model": {**BASE, "family": "sd16"}}, "model.family is 'sd16'; known families are"),
        ({"model": BASE, "sample": {"prompts": "a girl"}}, "sample.prompts is 'a girl', expected a list"),
        ({"model": BASE, "sample": {"prompts": [1]}}, "sample.prompts is (1,), expected a list"),
        ({"model": BASE, "sample": {"width": 100}}, "sample.width is 100; with sd15 it must be a multiple of 8"),
        ([], "the configuration is [], expected a table"),
    ],
)
def test_every_problem_of_a_run_is_reported_with_its_path(settings, shown):
    assert shown in refusal(RunConfig, settings)


@pytest.mark.parametrize(
    ("config_class", "settings", "shown"),
    [
        (OptimizerConfig, {"learning_rate": 0}, "nothing would be trained"),
        (
            OptimizerConfig,
            {"learning_rate": 0, "text_encoder_lr": 1e-5, "text_encoder_stop_step": 2},
            "would stop everything that is trained",
        ),
        (OptimizerConfig, {"name": "prodigy", "learning_rate": 1, "text_encoder_lr": 0.5}, "prodigy finds one rate"),
        (ScheduleConfig, {"warmup": math.inf}, "warmup is inf"),
        (DataConfig, {"bucket_reso_steps": 12, "enable_bucket": False}, "multiple of 8 px"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config_class, settings, shown):
    with pytest.raises(ConfigError, match=shown):
        config_class(**settings)


@pytest.mark.parametrize("settings", [{"learning_rate": 0, "text_encoder_lr": 1e-5}, {"name": "prodigy"}])
def test_settings_that_do_go_together_are_taken(settings):
    assert to_dict(OptimizerConfig(**settings)).items() >= settings.items()


def test_a_part_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="data is LossConfig.*, expected DataConfig"):
        RunConfig(model=from_dict(models.config_class("sd15"), BASE), data=LossConfig())


def test_default_tables_are_not_shared():
    OptimizerConfig().args["eps"] = 1
    assert OptimizerConfig().args == {}


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"a": 1, "b": {"c": [1]}}, {"a": 1, "b": {"c": [1]}}, []),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ["a.b.c: 1 -> 2"]),
        ({"a": {"b": 1}}, {"a": {"c": 1}}, ["a.b: 1 -> -", "a.c: - -> 1"]),
        ({"a": [1, 2]}, {"a": [2, 1]}, ["a: [1, 2] -> [2, 1]"]),
        ({"a": {}}, {"a": {"x": 0}}, ["a.x: - -> 0"]),
        ({"a": 1}, {"a": {"x": 0}}, ["a: 1 -> {'x': 0}"]),
    ],
)
def test_differences_are_listed_leaf_by_leaf(old, new, lines):
    assert differences(old, new) == lines
