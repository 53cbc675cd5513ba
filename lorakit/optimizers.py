"""Optimizers, a row each; heavy or optional packages are imported when their row is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lorakit.config import Config, ConfigError, setting

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Optimizer:
    """One row: how to build it from parameter groups and arguments, its default arguments, a line of help."""

    help: str
    build: Callable[[list[dict], dict[str, Any]], torch.optim.Optimizer]
    defaults: dict[str, Any]
    learning_rate: float = 1e-4  # a good first value, shown beside the row


def _optional(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"This optimizer needs the package {package}, which is not usable here ({error}): "
            f"pip install {package}, or choose optimizer.name adamw."
        ) from None


def _adamw(groups: list[dict], args: dict[str, Any]) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(groups, fused=True, **args)


def _adamw8bit(groups: list[dict], args: dict[str, Any]) -> torch.optim.Optimizer:
    return _optional("bitsandbytes", "bitsandbytes").optim.AdamW8bit(groups, **args)


def _prodigy(groups: list[dict], args: dict[str, Any]) -> torch.optim.Optimizer:
    return _optional("prodigyopt", "prodigyopt").Prodigy(groups, **args)


OPTIMIZERS = {
    "adamw": Optimizer(
        "the plain choice: fast, exact, little memory at LoRA sizes",
        _adamw,
        {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
    ),
    "adamw8bit": Optimizer(
        "AdamW with its state in 8 bits (bitsandbytes); saves little for LoRA",
        _adamw8bit,
        {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
    ),
    "prodigy": Optimizer(
        "finds the learning rate itself; set learning_rate to 1",
        _prodigy,
        {
            "betas": (0.9, 0.999),
            "weight_decay": 0.01,
            "decouple": True,
            "d_coef": 2.0,
            "use_bias_correction": True,
            "safeguard_warmup": True,
        },
        learning_rate=1.0,
    ),
}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """How weights follow gradients, and how fast."""

    name: str = setting("adamw", help="optimizer", choices=lambda: tuple(OPTIMIZERS))
    learning_rate: float = setting(
        1e-4, help="learning rate of the denoiser (UNet); 0 does not train it", minimum=0, maximum=10
    )
    text_encoder_lr: float = setting(
        0.0, help="learning rate of the text encoder; 0 does not train it", minimum=0, maximum=10
    )
    text_encoder_stop_step: int = setting(
        0, help="train the text encoder only up to this step; 0: to the end", minimum=0
    )
    max_grad_norm: float = setting(
        1.0, help="longer gradients are shortened to this; 0: never", minimum=0, maximum=1000
    )
    args: dict = setting({}, help="arguments of the optimizer itself, e.g. {weight_decay: 0.1}")

    def conflicts(self) -> list[str]:
        found = []
        if self.learning_rate == 0 and self.text_encoder_lr == 0:
            found.append("learning_rate and text_encoder_lr are both 0, so nothing would be trained; set one of them.")
        if self.name == "prodigy" and self.text_encoder_lr not in (0, self.learning_rate) and self.learning_rate:
            found.append(
                f"text_encoder_lr is {self.text_encoder_lr}; prodigy finds one rate for all: "
                f"set it to {self.learning_rate} or 0."
            )
        return found


def build(config: OptimizerConfig, groups: dict[str, tuple[list, float]]) -> torch.optim.Optimizer:
    """The optimizer over named groups {part: (parameters, base learning rate)}.

    Each parameter group remembers its `part` and `base_lr`, from which `set_rates` computes the rate of every step.
    Raises ConfigError for an argument that the optimizer does not know.
    """
    row = OPTIMIZERS[config.name]
    if "lr" in config.args:
        raise ConfigError("optimizer.args has lr; set optimizer.learning_rate and optimizer.text_encoder_lr instead.")
    args = {**row.defaults, **{name: tuple(v) if isinstance(v, list) else v for name, v in config.args.items()}}
    for name, default in row.defaults.items():
        if isinstance(default, tuple) and not (isinstance(args[name], tuple) and len(args[name]) == len(default)):
            raise ConfigError(f"optimizer.args.{name} is {args[name]!r}; a list like {list(default)} is wanted.")
    try:
        return row.build(
            [
                {"params": parameters, "lr": rate, "base_lr": rate, "part": part}
                for part, (parameters, rate) in groups.items()
            ],
            args,
        )
    except ConfigError:  # the package is missing
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.args {config.args} do not fit {config.name}: {error}.") from None


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its base rate times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate that the first group really moves at: lr, times d for optimizers that estimate it."""
    group = optimizer.param_groups[0]
    return group["lr"] * float(group["d"]) if "d" in group else group["lr"]
