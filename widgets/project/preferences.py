"""A project's choices that do not affect a result: the language, and where models are downloaded from."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from lorakit.files import write_json
from lorakit.files.disk import read_json
from lorakit.project import Project, platforms
from lorakit.project.platforms import Place
from lorakit.secrets import hidden
from widgets import i18n

MIRROR = "https://hf-mirror.com"
# Stands among the addresses of Hugging Face for AutoDL's proxy.
SWITCH = "network_turbo"

# Environment variables that were set for a choice made here; all others are the user's.
_set_here: dict[str, str] = {}


@dataclass(frozen=True)
class Preferences:
    """What a project remembers of its user.

    language      "en" or "zh"
    hf_endpoint   address of a mirror of Hugging Face; "" for Hugging Face itself, "network_turbo" for it through
                  AutoDL's proxy
    """

    language: str
    hf_endpoint: str = ""

    def save(self, project: Project) -> None:
        write_json(project.folder / "preferences.json", asdict(self))

    def apply(self) -> None:
        """Use the language, and let this process and the trainers it starts download from the chosen address."""
        i18n.use(self.language)
        variables = {"HF_ENDPOINT": self.hf_endpoint} if self.hf_endpoint else {}
        # AutoDL's proxy is a set of variables that its own script exports, not an address.
        if self.hf_endpoint == SWITCH:
            variables = platforms.network_switch()
        # Variables of the previous choice go first. One that the user changed since is the user's and stays.
        for name in [*_set_here]:
            if os.environ.get(name) == _set_here.pop(name):
                del os.environ[name]
        for name, value in variables.items():
            # What the user exported before starting Jupyter wins.
            if not os.environ.get(name):
                os.environ[name] = _set_here[name] = value


def read(project: Project, place: Place) -> Preferences:
    """The choices of a project; those of a new one fit the machine."""
    stored = {}
    # A damaged file is not worth stopping for: its choices are quickly made again.
    with suppress(FileNotFoundError, ValueError):
        stored = read_json(project.folder / "preferences.json")
    # AutoDL is a Chinese host, whatever locale its images have.
    chinese = place.name == "AutoDL" or os.environ.get("LC_ALL", os.environ.get("LANG", "")).startswith("zh")
    language = str(stored.get("language"))
    language = language if language in i18n.LANGUAGES else "zh" if chinese else "en"
    address = stored.get("hf_endpoint")
    return Preferences(language, address if isinstance(address, str) else "")


def users_endpoint() -> str:
    """The HF_ENDPOINT that the user set outside of this project, which wins over any choice; "" for none."""
    return "" if "HF_ENDPOINT" in _set_here else os.environ.get("HF_ENDPOINT", "")


def addresses(chosen: str) -> list[tuple[str, str]]:
    """(label, address) of Hugging Face and its mirrors to choose from."""
    if users := users_endpoint():
        return [(f"{hidden(users)} (HF_ENDPOINT)", users)]
    options = [("huggingface.co", ""), ("hf-mirror.com", MIRROR)]
    if platforms.SWITCH.exists():
        options.append(("huggingface.co + AutoDL network_turbo", SWITCH))
    return options if chosen in [address for _, address in options] else [*options, (chosen, chosen)]
