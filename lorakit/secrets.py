"""Passwords and tokens in addresses: hidden in every text, never stored, taken from memory or the environment."""

from __future__ import annotations

import os
import re
from typing import Any

# Full addresses, with their passwords and tokens, separated by spaces; children of this process inherit it.
VARIABLE = "LORAKIT_ADDRESSES"
# Names of query parameters that hold a secret: ?token=, &api_key=, &X-Amz-Signature=, &sig=.
_NAME = (
    r"(?:[\w.-]*[_.-])?(?:api|access|auth|app|private|secret)?"
    r"(?:token|key|secret|sign?|signature|passw(?:or)?d|pwd|auth|credentials?)(?:[_.-]?id)?|x-(?:amz|goog|oss)-[\w-]+"
    r"|(?:oss|aws)accesskeyid|googleaccessid"
)
_QUERY = re.compile(rf"(?i)(?<=[?&;])({_NAME})=[^&;\s\"'<>#)]*")
_LOGIN = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^/\s\"'<>?#]+@")
# Keys of Hugging Face, OpenAI and others, and the header that carries them.
_KEY = re.compile(r"\b(hf_|sk-|ms-)[A-Za-z0-9_-]{16,}|(?i:\bbearer\s+)[\w.~+/=-]{8,}")
_HIDDEN = "***"
_SECRET_VARIABLE = re.compile(r"(?i)token|secret|passw|api_?key|credential")


def hidden(text: str) -> str:
    """A text for people, logs and files, with `***` for each password, token or key of an address in it."""
    text = _LOGIN.sub(rf"\1{_HIDDEN}@", text)
    return _KEY.sub(_HIDDEN, _QUERY.sub(rf"\1={_HIDDEN}", text))


def hidden_with_environment(text: str) -> str:
    """As `hidden`, also without the values of environment variables that are named like secrets (HF_TOKEN)."""
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name) and len(value) >= 8:
            text = text.replace(value, _HIDDEN)
    return hidden(text)


def without_secret(address: str) -> str:
    """An address without user name, password and secret query parameters; any other text as it is."""
    if not _is_url(address):
        return address
    base, mark, query = _LOGIN.sub(r"\1", address).partition("?")
    kept = [part for part in query.split("&") if not _QUERY.fullmatch(f"?{part}", 1)]
    return base + (mark if any(kept) else "") + "&".join(kept)


def with_secret(address: str) -> str:
    """The full address that `without_secret` turns into this one, from VARIABLE; else the address itself."""
    full = (given for given in os.environ.get(VARIABLE, "").split() if without_secret(given) == address)
    return next(full, address) if _is_url(address) else address


def without_secrets(settings: Any) -> Any:
    """Nested settings with no secret in any address.

    The full addresses stay in this process and its children, in VARIABLE, and reach no file.
    """
    if isinstance(settings, dict):
        return {name: without_secrets(value) for name, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(without_secrets, settings))
    if isinstance(settings, str) and (bare := without_secret(settings)) != settings:
        others = [given for given in os.environ.get(VARIABLE, "").split() if without_secret(given) != bare]
        os.environ[VARIABLE] = " ".join([*others, settings])
        return bare
    return settings


def _is_url(text: str) -> bool:
    return bool(re.match(r"(?i)\s*https?://", text))
