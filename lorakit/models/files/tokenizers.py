"""Opens tokenizers from folders, after a look at their files; nothing is ever asked of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorakit.files.disk import raise_if_closed
from lorakit.hub.files import verify_part
from lorakit.hub.header import ModelFileError

# What transformers and its tokenizers raise for files of another kind or with wrong content.
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, ImportError)


def open_tokenizer(name: str, folder: Path) -> Any:
    """The tokenizer of a class of transformers from a folder; code in the folder is never run.

    Raises ModelFileError for a missing folder and for files that make no such tokenizer.
    """
    import transformers

    if not folder.is_dir():
        raise ModelFileError(f"There is no folder {folder} with the tokenizer: download the model again.")
    verify_part(folder)
    try:
        tokenizer = getattr(transformers, name).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # a vocabulary of nothing is made without an error where files are missing
        is_empty = not tokenizer("a photo")["input_ids"]
    # broad: the Rust library raises plain Exception for files that it cannot read
    except Exception as error:
        raise_if_closed(error, folder)
        if not isinstance(error, UNREADABLE) and type(error) is not Exception:
            raise
        raise ModelFileError(
            f"{folder} holds no readable {name} ({' '.join(str(error).split())[:160]}): download the model again."
        ) from error
    if is_empty:
        raise ModelFileError(f"{folder} lacks the vocabulary of the {name}: download the model again.")
    return tokenizer
