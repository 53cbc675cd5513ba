"""The parts of an Anima model, from a diffusers folder or from the single files that ComfyUI uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from lorakit.hub.files import ModelFileError, part_weights, read_index
from lorakit.hub.header import verify_safetensors
from lorakit.hub.settings import read_settings
from lorakit.models.files.anima_names import ACCEPTED, DIT, HUB_FILES, MARKS, MEASURED, RENAMED, encoder_names
from lorakit.models.files.fitness import CANNOT, unfit_folder, unfit_weights
from lorakit.models.files.kinds import kind_of
from lorakit.models.files.tokenizers import open_tokenizer
from lorakit.models.files.weights import Tensors, frozen, read_tensors

ANIMA_CONFIG = Path(__file__).parents[1] / "anima_config"
CLASSES = {  # of each part that has weights, as diffusers' AnimaModularPipeline names them
    "transformer": "CosmosTransformer3DModel",
    "text_conditioner": "AnimaTextConditioner",
    "text_encoder": "Qwen3Model",
    "vae": "AutoencoderKLQwenImage",
}
# The same weights with a head that predicts words, which is not loaded.
WITH_HEAD = {"text_encoder": "Qwen3ForCausalLM"}
# Settings that config.json of a part must have, as they are read here.
NEEDED = {
    "transformer": ("text_embed_dim", "in_channels"),
    "text_conditioner": ("source_dim", "target_dim"),
    "text_encoder": ("hidden_size",),
    "vae": ("z_dim", "latents_mean", "latents_std"),
}
# Parts without weights.
PLAIN = ("tokenizer", "t5_tokenizer", "scheduler")
BUNDLED = {name: ANIMA_CONFIG / name for name in PLAIN}


# ---- where a part is -------------------------------------------------------------------------------------------------


class FolderPart:
    """A part in a folder of its own: config.json beside its weights, any variant, maybe in shards.

    Raises ModelFileError for a folder of another part.
    """

    def __init__(self, part: str, folder: Path):
        self.folder, self.settings = folder, folder / "config.json"
        # diffusers writes its class as `_class_name`, transformers as `architectures`.
        name = self.config.get("_class_name") or (self.config.get("architectures") or ["nothing known here"])[0]
        if name not in (CLASSES[part], WITH_HEAD.get(part)):
            raise ModelFileError(f"{folder} holds {name}; for the {part} expected was {CLASSES[part]}.")
        if lacking := [needed for needed in NEEDED[part] if self.config.get(needed) is None]:
            raise ModelFileError(f"{self.settings} lacks {', '.join(lacking)}: download it again.")
        if reason := unfit_folder(folder, MARKS):
            raise ModelFileError(f"{folder} {CANNOT}: {reason}.")

    @property
    def files(self) -> list[Path]:
        """The weights."""
        return part_weights(self.folder)

    @cached_property
    def config(self) -> dict:
        """config.json."""
        return read_settings(self.settings)

    def tensors(self, model: torch.nn.Module) -> Tensors:
        """The weights under the names of the library's class, as views of the mapped files."""
        tensors = {name: tensor for file in self.files for name, tensor in read_tensors(file, "").items()}
        # changes the names of a language model's text encoder; the other parts have none of these
        return {own: tensors[name] for own, name in encoder_names(tensors).items()}


class FilePart:
    """A part in a single file of the original layout; `anima_config` has the settings that shapes do not show.

    Raises ModelFileError for a damaged file, another part, and weights in 8 bits.
    """

    def __init__(self, part: str, path: Path):
        self.part, self.files, self.settings = part, [path], ANIMA_CONFIG / part / "config.json"
        example = f"on Hugging Face it is {HUB_FILES[part]}"
        if not path.is_file():
            raise ModelFileError(f"There is no file or folder {path} to take the {part} from; {example}.")
        self.header = verify_safetensors(path)
        self.header.pop("__metadata__", None)
        self.kind = kind_of(self.header)
        expected = [kind.name for kind in ACCEPTED[part]]
        if self.kind not in expected:
            raise ModelFileError(
                f"{path} is {self.kind}; for the {part} expected was {' or '.join(expected)} ({example})."
            )
        if reason := unfit_weights(self.header):
            raise ModelFileError(f"{path} {CANNOT}: {reason}; {example}.")

    @cached_property
    def names(self) -> dict[str, str]:
        """The name in the library's class -> the name in the file, of this part's tensors."""
        return RENAMED[self.part](self.header)

    @cached_property
    def config(self) -> dict:
        """The settings that config.json of a diffusers folder would have, measured from the shapes."""
        shapes = {own: tuple(self.header[name]["shape"]) for own, name in self.names.items()}
        try:
            return {**read_settings(self.settings), **MEASURED[self.part](shapes)}
        except (LookupError, ValueError, ZeroDivisionError) as error:
            raise ModelFileError(
                f"The {self.part} in {self.files[0]} cannot be measured ({error}): it is incomplete or of another kind."
            ) from error

    def tensors(self, model: torch.nn.Module) -> Tensors:
        """The weights under the names of the library's class, as views of the mapped file."""
        tensors = read_tensors(self.files[0], "")
        return {own: tensors[name] for own, name in self.names.items()}


class BundledPart:
    """A part of Anima's usual size, from the configuration that comes with the package: shapes, no weights."""

    files: tuple[Path, ...] = ()

    def __init__(self, part: str):
        self.settings = ANIMA_CONFIG / part / "config.json"

    @property
    def config(self) -> dict:
        """config.json."""
        return read_settings(self.settings)

    def tensors(self, model: torch.nn.Module) -> Tensors:
        """The model's own, which it was built with on the meta device."""
        return dict(model.state_dict())


Part = FolderPart | FilePart | BundledPart


# ---- all parts -------------------------------------------------------------------------------------------------------


def open_anima(
    source: Path, *, text_encoder: Path | None, vae: Path | None, text_conditioner: Path | None
) -> AnimaFiles:
    """The parts of an Anima model, each read when it is used.

    source            a diffusers folder with all parts, or the DiT as a single .safetensors
    text_encoder      Qwen3-0.6B as a .safetensors or a folder; needed if `source` is a file
    vae               the Qwen-Image VAE, likewise
    text_conditioner  the LLM adapter, likewise; needed if it is not inside the DiT's file

    Raises ModelFileError for a damaged file, another kind of file, a missing part, parts that do not belong together.
    """
    source = Path(source)
    parts: dict[str, Part]
    if source.is_dir():
        folders = _folders(source)
        parts = {name: FolderPart(name, folders[name]) for name in CLASSES}
    else:
        folders = BUNDLED
        parts = {"transformer": FilePart("transformer", source)}
        if text_conditioner is None and parts["transformer"].kind == DIT.name:
            parts["text_conditioner"] = FilePart("text_conditioner", source)
    chosen = {"text_conditioner": text_conditioner, "text_encoder": text_encoder, "vae": vae}
    for name, path in chosen.items():
        if path is not None:
            inner = path / name if (path / name).is_dir() else path
            parts[name] = FolderPart(name, inner) if inner.is_dir() else FilePart(name, inner)
    missing = [f"{name}, such as {HUB_FILES[name]}" for name in CLASSES if name not in parts]
    if missing:
        raise ModelFileError(f"{source} is {parts['transformer'].kind} alone; name its {'; and its '.join(missing)}.")
    return AnimaFiles(parts, folders)


def bundled_anima() -> AnimaFiles:
    """The parts of the usual Anima without weights; they load on the meta device only."""
    return AnimaFiles({name: BundledPart(name) for name in CLASSES}, BUNDLED)


def _folders(source: Path) -> dict[str, Path]:
    """part -> its folder, in a diffusers folder with Anima's parts."""
    index = read_index(source)
    if not {"transformer", "text_conditioner"} <= index.keys():
        present = ", ".join(name for name, entry in index.items() if isinstance(entry, list))
        raise ModelFileError(
            f"{source} holds a {index.get('_class_name')} with {present}; expected was Anima with {', '.join(CLASSES)}."
        )
    folders = {}
    for name in (*CLASSES, *PLAIN):
        # a modular index says where a part comes from: [library, class, {subfolder, pretrained_model_name_or_path}]
        origin = index[name][2] if len(index.get(name, ())) > 2 else {}
        folders[name] = source / (origin.get("subfolder") or name)
        if not folders[name].is_dir():
            repository = origin.get("pretrained_model_name_or_path")
            raise ModelFileError(
                f"{source} has no folder {folders[name].name} with the {name}"
                + (
                    f"; its index takes it from {repository}: put that folder here"
                    if repository
                    else ": download it again"
                )
                + "."
            )
    return folders


class AnimaFiles:
    """The parts as frozen modules with checked weights, their configurations and tokenizers."""

    def __init__(self, parts: dict[str, Part], folders: dict[str, Path]):
        self._parts, self._plain = parts, {name: folders[name] for name in PLAIN}
        # In the order of CLASSES.
        transformer, conditioner, encoder, vae = (parts[name].config for name in CLASSES)
        for what, width, where, expected in (
            ("text conditioner", conditioner["target_dim"], "transformer", transformer["text_embed_dim"]),
            ("text encoder", encoder["hidden_size"], "text conditioner", conditioner["source_dim"]),
            ("VAE", vae["z_dim"], "transformer", transformer["in_channels"]),
        ):
            if width != expected:
                raise ModelFileError(
                    f"The {what} has {width} channels, the {where} takes {expected}: these parts are of different "
                    f"models ({', '.join(f'{name} {part.files[0]}' for name, part in parts.items())})."
                )

    def files(self, part: str) -> list[Path]:
        """The files that the weights of a part are read from."""
        return self._parts[part].files

    def settings(self, part: str) -> list[Path]:
        """The files that a part's output depends on besides its weights: configuration, and the tokenizer before it."""
        reader = {"text_encoder": "tokenizer", "text_conditioner": "t5_tokenizer"}.get(part)
        words = sorted(self._plain[reader].iterdir()) if reader else []
        return [self._parts[part].settings, *(file for file in words if file.suffix in (".json", ".txt", ".model"))]

    def transformer(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """CosmosTransformer3DModel in `dtype` on `device`."""
        from diffusers import CosmosTransformer3DModel

        return self._module("transformer", CosmosTransformer3DModel.from_config, dtype, device)

    def text_conditioner(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """AnimaTextConditioner in `dtype` on `device`."""
        from diffusers import AnimaTextConditioner

        return self._module("text_conditioner", AnimaTextConditioner.from_config, dtype, device)

    def text_encoder(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """Qwen3Model in `dtype` on `device`."""
        from transformers import Qwen3Config, Qwen3Model

        return self._module("text_encoder", lambda config: Qwen3Model(Qwen3Config.from_dict(config)), dtype, device)

    def vae(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """AutoencoderKLQwenImage in `dtype` on `device`."""
        from diffusers import AutoencoderKLQwenImage

        return self._module("vae", AutoencoderKLQwenImage.from_config, dtype, device)

    def tokenizer(self):
        """The tokenizer of Qwen3, from local files alone."""
        return _qwen(self._plain["tokenizer"])

    def t5_tokenizer(self):
        """The tokenizer of T5, from local files alone; it ends each text with </s>."""
        return _t5(self._plain["t5_tokenizer"])

    @cached_property
    def tokenizers(self) -> tuple:
        """Of Qwen3, whose hidden states the text conditioner attends to, and of T5, whose tokens are its queries."""
        return self.tokenizer(), self.t5_tokenizer()

    def transformer_config(self) -> dict:
        """The transformer's configuration."""
        return self._parts["transformer"].config

    def text_conditioner_config(self) -> dict:
        """The text conditioner's configuration; `min_sequence_length` is always in it."""
        return {"min_sequence_length": 512, **self._parts["text_conditioner"].config}

    def vae_config(self) -> dict:
        """The VAE's configuration; `latents_mean` and `latents_std`, one number a channel, are always in it."""
        return self._parts["vae"].config

    def scheduler_config(self) -> dict:
        """Of FlowMatchEulerDiscreteScheduler; `shift` is always in it."""
        return {"shift": 1.0, **read_settings(self._plain["scheduler"] / "scheduler_config.json")}

    def _module(
        self, part: str, build: Callable[[dict], torch.nn.Module], dtype: torch.dtype, device: torch.device
    ) -> torch.nn.Module:
        source = self._parts[part]
        where = f"The {part} in {', '.join(map(str, self.files(part)))}"
        return frozen(build, source.config, source.tensors, where, dtype, device)


def tokenizers_at(source: Path) -> tuple:
    """Those of Qwen3 and T5 of a diffusers folder, or the bundled ones for a single file; no weights are read."""
    folder = source if source.is_dir() else ANIMA_CONFIG
    return _qwen(folder / "tokenizer"), _t5(folder / "t5_tokenizer")


def _qwen(folder: Path):
    # The package has only merges.txt of it (the vocabulary follows from that), which from_pretrained cannot read.
    return bundled_qwen() if folder.parent == ANIMA_CONFIG else open_tokenizer("Qwen2TokenizerFast", folder)


def _t5(folder: Path):
    return open_tokenizer("T5TokenizerFast", folder)


def bundled_qwen():
    """Qwen3's tokenizer (byte pair encoding) from `anima_config`: 256 bytes, then the merged pairs."""
    from transformers import AddedToken, Qwen2TokenizerFast

    folder = ANIMA_CONFIG / "tokenizer"
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line]
    # a letter for each byte, as in GPT-2: printable bytes stand for themselves, the others get letters from 256 on
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(code) for code in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    words = [*letters, *map("".join, merges)]
    tokenizer = Qwen2TokenizerFast(vocab={word: i for i, word in enumerate(words)}, merges=merges)
    added = read_settings(folder / "added_tokens.json")
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in added["special"]])
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in added["plain"]])
    return tokenizer
