"""Optimizers, a row each; heavy or optional packages are imported when their row is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lorakit.config import Config, ConfigError, Field, Slider, setting

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Optimizer:
    """One row: how to build it from parameter groups and arguments, its default arguments, a line of help, and the
    package that it needs beside torch.
    """

    help: str
    build: Callable[[list[dict], dict[str, Any]], torch.optim.Optimizer]
    defaults: dict[str, Any]
    learning_rate: float = 1e-4  # a good first value, shown beside the row
    package: str = ""


def _optional(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # bitsandbytes fails in all these ways
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
        package="bitsandbytes",
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
        package="prodigyopt",
    ),
}


RATES = ("learning_rate", "text_encoder_lr", "text_encoder_2_lr", "text_conditioner_lr")


def _rate(default: float, *, help: str, label: str = "", basic: bool = False) -> Any:
    """A learning rate: its slider is logarithmic and goes from 1e-6 to 1e-2, twenty steps a tenfold."""
    return setting(default, help=help, range=(0, 10), ui=Slider(1e-6, 1e-2, 0.05, log=True, label=label, basic=basic))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """How weights follow gradients, and how fast."""

    name: str = setting("adamw", help="optimizer", choices=lambda: OPTIMIZERS, ui=Field(label="optimizer"))
    learning_rate: float = _rate(
        1e-4, help="learning rate of the denoiser (UNet, transformer); 0 does not train it", basic=True
    )
    text_encoder_lr: float = _rate(
        0.0,
        help="learning rate of the (first) text encoder; 0 does not train it",
        label="text encoder learning rate",
    )
    text_encoder_2_lr: float = _rate(
        0.0,
        help="learning rate of SDXL's second text encoder; 0 does not train it",
        label="second text encoder learning rate",
    )
    text_conditioner_lr: float = _rate(
        0.0,
        help="advanced: learning rate of Anima's text conditioner (LLM adapter), at most half of learning_rate; "
        "it holds most of what the base knows of names, and forgets easily; 0 does not train it",
        label="text conditioner learning rate",
    )
    text_encoder_stop_step: int = setting(
        0,
        help="train the text encoders, and Anima's text conditioner, only up to this step; 0: to the end",
        range=(0, None),
        ui=Field(label="text encoders stop at step"),
    )
    max_grad_norm: float = setting(
        1.0,
        help="longer gradients are shortened to this; 0: never",
        range=(0, 1000),
        ui=Field(label="longest gradient"),
    )
    args: dict = setting(
        {}, help="arguments of the optimizer itself, e.g. {weight_decay: 0.1}", ui=Field(label="optimizer arguments")
    )

    def conflicts(self) -> list[str]:
        found = []
        rates = {name: getattr(self, name) for name in RATES}
        if not any(rates.values()):
            found.append(f"{', '.join(rates)} are all 0, so nothing would be trained; set one of them.")
        if self.text_encoder_stop_step and not self.learning_rate:
            found.append("text_encoder_stop_step would stop all that is trained; set learning_rate, or take it away.")
        if self.name == "prodigy" and len(set(rates.values()) - {0}) > 1:
            told = ", ".join(f"{name} {rate:g}" for name, rate in rates.items() if rate)
            found.append(
                f"the learning rates differ ({told}); prodigy finds one rate for all: set them alike, or to 0."
            )
        if self.learning_rate and self.name != "prodigy" and self.text_conditioner_lr > self.learning_rate / 2:
            found.append(
                f"text_conditioner_lr is {self.text_conditioner_lr:g}; it must be at most half of learning_rate "
                f"({self.learning_rate:g}), or the base forgets what it knows."
            )
        return found


def build(config: OptimizerConfig, groups: dict[str, tuple[list, float]]) -> torch.optim.Optimizer:
    """The optimizer over named groups {part: (parameters, base learning rate)}.

    Each parameter group remembers its `part` and `base_lr`, from which `set_rates` computes the rate of every step.
    Raises ConfigError for an argument that the optimizer does not know.
    """
    row = OPTIMIZERS[config.name]
    if "lr" in config.args:
        raise ConfigError(f"optimizer.args has lr; set {', '.join(f'optimizer.{name}' for name in RATES)} instead.")
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


def usable(name: str) -> str:
    """Why an optimizer cannot be used on this machine, with what to do; "" after a real step with it.

    The package may be missing or built for another CUDA; the step tells, on the GPU where there is one.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.nn.Parameter(torch.ones(128, 128, device=device))  # large enough for 8-bit states
    weight.grad = torch.ones_like(weight)
    row = OPTIMIZERS[name]
    try:
        row.build([{"params": [weight], "lr": row.learning_rate}], dict(row.defaults)).step()
        moved = bool(((weight < 1) & weight.isfinite()).all())
    except ConfigError as error:  # the package is missing or broken
        return str(error)
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{name} fails on this machine ({told}): choose optimizer.name adamw."
    return "" if moved else f"a step of {name} leaves the weights as they were: choose optimizer.name adamw."


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its base rate times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate that the first group really moves at: lr, times d for optimizers that estimate it."""
    group = optimizer.param_groups[0]
    return group["lr"] * float(group["d"]) if "d" in group else group["lr"]
