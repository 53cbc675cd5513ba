"""CLIP text encoding as the Stable Diffusion families use it: long captions in chunks, clip skip."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lorakit.errors import UserError
from lorakit.hub import downloading_nothing, fetch
from lorakit.models.files.sd_sources import CLIP_VOCABULARY

CHUNK = 75  # caption tokens in each of CLIP's windows of 77, beside its begin and end marks


def token_ids(tokenizer, captions: list[str], max_token_length: int, padding: int | None = None) -> torch.Tensor:
    """int64 [B, chunks, 77] with chunks = max_token_length / 75; what does not fit is cut.

    Each chunk is a whole window (begin, 75 tokens, end, padding), as A1111 and ComfyUI split long prompts. `padding` is
    the tokenizer's own if not given.
    """
    padding = tokenizer.pad_token_id if padding is None else padding
    chunks = max_token_length // CHUNK
    ids = tokenizer(captions, truncation=True, max_length=max_token_length + 2, add_special_tokens=True)["input_ids"]
    rows = []
    for row in ids:
        tokens = row[1:-1]
        windows = (tokens[i * CHUNK : (i + 1) * CHUNK] for i in range(chunks))
        rows.append(
            [
                [tokenizer.bos_token_id, *window, tokenizer.eos_token_id] + [padding] * (CHUNK - len(window))
                for window in windows
            ]
        )
    return torch.tensor(rows)


def excess(source: str, max_token_length: int) -> Callable[[str], str]:
    """As a family's `excess`: by the tokenizer in the base's folder, else by CLIP's own, which all bases share."""
    from transformers import CLIPTokenizer

    try:
        with downloading_nothing():
            own = fetch(source) / "tokenizer"
    except UserError:  # it is not here yet, or cannot be used, which is for others to say
        own = CLIP_VOCABULARY
    tokenizer = CLIPTokenizer.from_pretrained(own if own.is_dir() else CLIP_VOCABULARY, local_files_only=True)

    def cut(caption: str) -> str:
        places = tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return caption[places[max_token_length][0] :] if len(places) > max_token_length else ""

    return cut


def hidden_states(text_encoder: torch.nn.Module, ids: torch.Tensor, clip_skip: int) -> torch.Tensor:
    """[B, chunks x 77, width]: the `clip_skip`-th layer from the end (1 is the last), then the final norm, as kohya."""
    output = text_encoder(ids.flatten(0, 1), output_hidden_states=True)
    hidden = final_layer_norm(text_encoder)(output.hidden_states[-clip_skip])
    return hidden.reshape(ids.shape[0], -1, hidden.shape[-1])


def penultimate(text_encoder: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """`hidden` [B, chunks x 77, width] of the layer before the last, without norm, as SDXL's UNet was trained with.

    From an encoder with a projection also `pooled` [B, projection width] of the first chunk, as A1111 and ComfyUI take
    it: it holds what matters most, and short captions have no other.
    """
    output = text_encoder(ids.flatten(0, 1), output_hidden_states=True)
    hidden = output.hidden_states[-2]
    found = {"hidden": hidden.reshape(len(ids), -1, hidden.shape[-1])}
    if "text_embeds" in output:
        found["pooled"] = output.text_embeds.unflatten(0, ids.shape[:2])[:, 0]
    return found


def final_layer_norm(text_encoder: torch.nn.Module) -> torch.nn.Module:
    """The last layer norm; transformers 5 keeps it on the model itself, older ones below `text_model`."""
    return getattr(text_encoder, "text_model", text_encoder).final_layer_norm


def with_text_model(module: str) -> str:
    """The module's name below `text_model.`, as LoRA files have it whatever the installed transformers calls it."""
    return module if module.startswith("text_model.") else f"text_model.{module}"
