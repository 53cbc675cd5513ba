"""JSON files of models, checked by type and range before a library reads them: sizes that no model has can hang one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorakit.files.disk import DamagedFile, DiskError, read_file
from lorakit.hub.header import ModelFileError, unique

# Bytes of a settings file, and of a tokenizer's vocabulary; the largest ones in use have 0.1 MB and 35 MB.
MOST, MOST_WORDS = 1 << 20, 1 << 26
# Nested lists and objects.
DEPTH = 32
# Files with a vocabulary rather than settings, or of a tokenizer, whose numbers may be anything (a limit of 1e30).
WORDS = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
# Settings that are a number of channels, heads, words ... or a list of such numbers.
SIZES = {
    **dict.fromkeys(
        "hidden_size intermediate_size projection_dim d_model d_ff d_kv model_dim source_dim target_dim text_embed_dim "
        "cross_attention_dim head_dim attention_head_dim num_attention_heads num_key_value_heads in_channels "
        "out_channels latent_channels z_dim base_dim block_out_channels addition_time_embed_dim adaln_lora_dim "
        "projection_class_embeddings_input_dim norm_num_groups num_channels".split(),
        (1, 1 << 17),
    ),
    **dict.fromkeys("sample_size min_sequence_length max_position_embeddings".split(), (1, 1 << 22)),
    **dict.fromkeys("vocab_size target_vocab_size".split(), (1, 1 << 22)),
    **dict.fromkeys("num_hidden_layers num_layers".split(), (1, 256)),
    **dict.fromkeys("layers_per_block num_res_blocks transformer_layers_per_block patch_size".split(), (0, 64)),
    "num_train_timesteps": (1, 10_000),
}
# Settings that are a number.
NUMBERS = {
    **dict.fromkeys("scaling_factor mlp_ratio rope_theta shift".split(), (1e-6, 1e9)),
    **dict.fromkeys("beta_start beta_end attention_dropout dropout".split(), (0, 1)),
    **dict.fromkeys("layer_norm_eps rms_norm_eps norm_eps".split(), (0, 1)),
}
TEXTS = tuple(
    "_class_name prediction_type beta_schedule timestep_spacing act_fn hidden_act model_type mid_block_type".split()
)
# Settings that are a list, and of what.
LISTS = {
    **dict.fromkeys("architectures down_block_types up_block_types".split(), str),
    **dict.fromkeys("block_out_channels latents_mean latents_std dim_mult".split(), int | float),
}
SWITCHES = ("rescale_betas_zero_snr", "use_linear_projection", "force_upcast", "concat_padding_mask")
# Most entries of those lists; a UNet of 16 levels exists nowhere.
MOST_ENTRIES = 64


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file of a model (config.json, model_index.json ...).

    Known ones are of their type and within a range that every model in use fits into many times; null is allowed.
    Raises ModelFileError, which names the file and the setting, for everything else; for a missing file, a folder, a
    pipe, more than 1 MB, what is no object, a name twice, nesting beyond DEPTH and numbers that are not finite.
    """
    settings = _read(path, MOST)
    for name, value in _named(settings):
        if problem := _problem(name, value):
            raise ModelFileError(f"{path}: {name} is {str(value)[:60]!r}, {problem}: the file is damaged or odd.")
    return settings


def verify_settings(path: Path) -> None:
    """Check a file of a model's part that is no weights; of a tokenizer only that it is a file of a sane size, and an
    object where it is JSON. Raises ModelFileError.
    """
    if path.name in WORDS:
        _read(path, MOST_WORDS)
    elif path.suffix != ".json":
        _bytes(path, MOST_WORDS)
    elif not path.name.endswith(".index.json"):
        # an index of shards is not used: the names of the files say the same
        read_settings(path)


def _read(path: Path, most: int) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelFileError."""
    advice = "download it again"
    text = _bytes(path, most)
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not readable JSON ({str(error)[:120]}): {advice}.") from error
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(content), "a number")
        raise ModelFileError(f"{path} holds {kind} instead of an object with settings: {advice}.")
    if _depth(content) > DEPTH:
        raise ModelFileError(f"{path} is nested deeper than {DEPTH} levels, as no model's settings are: {advice}.")
    return content


def _bytes(path: Path, most: int) -> bytes:
    """The content of a plain file. Raises ModelFileError."""
    try:
        return read_file(path, most)
    except FileNotFoundError as error:
        raise ModelFileError(f"There is no {path}: the folder is incomplete; download it again.") from error
    except (DamagedFile, DiskError) as error:
        raise ModelFileError(str(error)) from error


def _depth(content: Any) -> int:
    """How deep lists and objects are nested, counted without recursion."""
    depth, level = 0, [content]
    while level and depth <= DEPTH:
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        depth += 1
    return depth


def _named(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of all settings, also of those of a part inside (`text_config`)."""
    for name, value in settings.items():
        yield name, value
        if isinstance(value, dict):
            yield from _named(value)


def _problem(name: str, value: Any) -> str:
    """What is wrong with the value of a setting; "" when nothing is."""
    if not _finite(value):
        return "which is not finite"
    if value is None:
        return ""
    if name in LISTS:
        is_list = isinstance(value, list) and len(value) <= MOST_ENTRIES
        if not is_list or not all(isinstance(entry, LISTS[name]) for entry in value):
            return f"but must be a list of {'texts' if LISTS[name] is str else 'numbers'}, {MOST_ENTRIES} at most"
    if name in SIZES:
        least, most = SIZES[name]
        if not all(type(number) is int and least <= number <= most for number in _flat(value)):
            return f"but must be a whole number from {least} to {most}"
    elif name in NUMBERS:
        least, most = NUMBERS[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            return f"but must be a number from {least:g} to {most:g}"
    elif name in TEXTS and not isinstance(value, str):
        return "but must be a text"
    elif name in SWITCHES and not isinstance(value, bool):
        return "but must be true or false"
    return ""


def _flat(value: Any) -> list[Any]:
    """The values of nested lists, in one; of no list the value itself."""
    return [inner for item in value for inner in _flat(item)] if isinstance(value, list) else [value]


def _finite(value: Any) -> bool:
    return all(not isinstance(number, float) or math.isfinite(number) for number in _flat(value))
