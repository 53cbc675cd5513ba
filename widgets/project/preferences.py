"""A project's choices that decide no result: the language, and where models come from; on disk and in force."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from lorakit.files import write_json
from lorakit.project import Project, platforms
from lorakit.project.platforms import Place
from widgets import i18n

MIRROR = "https://hf-mirror.com"
SWITCH = "network_turbo"  # stands among the hub's addresses for AutoDL's proxy

_set_here: dict[str, str] = {}  # environment variables that stand for a choice; all others are the user's


@dataclass(frozen=True)
class Preferences:
    """language: "en" or "zh"; hf_endpoint: the hub's address, "" its own, "network_turbo" its own by AutoDL's proxy."""

    language: str
    hf_endpoint: str = ""

    def save(self, project: Project) -> None:
        write_json(project.folder / "preferences.json", asdict(self))

    def apply(self) -> None:
        """Speak the language, and send this process and the trainers it starts to the hub that was chosen."""
        i18n.use(self.language)
        variables = {"HF_ENDPOINT": self.hf_endpoint} if self.hf_endpoint else {}
        if self.hf_endpoint == SWITCH:
            variables = platforms.network_switch()
        for name in [*_set_here]:
            if os.environ.get(name) == _set_here.pop(name):
                del os.environ[name]
        for name, value in variables.items():
            if not os.environ.get(name):
                os.environ[name] = _set_here[name] = value


def read(project: Project, place: Place) -> Preferences:
    """The choices of a project; those of a new one fit the machine."""
    stored = {}
    with suppress(FileNotFoundError, ValueError, AttributeError):  # a damaged file is not worth stopping for
        stored = dict(json.loads((project.folder / "preferences.json").read_text("utf-8")).items())
    chinese = place.name == "AutoDL" or os.environ.get("LC_ALL", os.environ.get("LANG", "")).startswith("zh")
    language = str(stored.get("language"))
    language = language if language in i18n.LANGUAGES else "zh" if chinese else "en"
    address = stored.get("hf_endpoint")
    return Preferences(language, address if isinstance(address, str) else "")


def users_endpoint() -> str:
    """The hub's address in the user's own environment, which goes before any choice; "" when it says nothing."""
    return "" if "HF_ENDPOINT" in _set_here else os.environ.get("HF_ENDPOINT", "")


def addresses(chosen: str) -> list[tuple[str, str]]:
    """(shown, address) of the hubs to choose from."""
    if users := users_endpoint():
        return [(f"{users} (HF_ENDPOINT)", users)]
    options = [("huggingface.co", ""), ("hf-mirror.com", MIRROR)]
    if platforms.SWITCH.exists():
        options.append(("huggingface.co + AutoDL network_turbo", SWITCH))
    return options if chosen in [address for _, address in options] else [*options, (chosen, chosen)]
