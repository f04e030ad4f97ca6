"""Which models are served under which names, and where a model's files are.

`find_model` turns what an operator typed into a folder, from the hub if need be. `ServedModel` is
everything the front end knows of it: tokenizer, chat template, sampling defaults, names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.engine.bundled import TARGET
from octavo.engine.checkpoint import ModelConfig, read_model_config, weight_files
from octavo.engine.errors import BrokenCheckpoint, InvalidParameter, ModelNotFound
from octavo.engine.params import SamplingParams

from .settings import BUNDLED, Settings

if TYPE_CHECKING:
    from .text.template import ChatTemplate
    from .text.tokenizer import Tokenizer

BUNDLED_NAME = "octavo"
Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens"
    r"|chat_template|model\.safetensors\.index)\.json"
    r"|chat_template\.jinja|additional_chat_templates/[\w.-]+\.jinja"
    r"|[^/]*\.safetensors"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model as the front end sees it."""

    names: tuple[str, ...]  # the first is the one in answers
    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None  # None: a base model, chat is refused
    sampling_defaults: Mapping[str, int | float]  # SamplingParams fields the checkpoint decides
    created: int  # seconds since 1970, the same at each start
    max_model_len: int | None = None  # known when the engine is ready
    given: str = ""  # what the operator typed, also taken as a name

    @property
    def name(self) -> str:
        return self.names[0]

    @classmethod
    def load(cls, folder: Path, settings: Settings) -> ServedModel:
        """Reads tokenizer and template; takes a second with a large vocabulary.

        Raises:
            ConfigError: a file of the checkpoint, or the operator's template, cannot be used.
        """
        from .text.template import ChatTemplate
        from .text.tokenizer import Tokenizer

        config = read_model_config(folder)
        tokenizer = Tokenizer.from_folder(folder)
        if settings.chat_template is not None:
            template: ChatTemplate | None = ChatTemplate.from_setting(
                settings.chat_template, tokenizer
            )
        else:
            template = ChatTemplate.from_folder(folder, tokenizer)
        return cls(
            names=settings.served_model_name or (_own_name(settings.model, folder),),
            folder=folder,
            config=config,
            tokenizer=tokenizer,
            template=template,
            sampling_defaults=_sampling_defaults(config, folder, settings),
            created=int((folder / "config.json").stat().st_mtime),
            given=settings.model,
        )


class ModelPool:
    """The served models by name. The first one answers requests that name none."""

    def __init__(self, models: tuple[ServedModel, ...]) -> None:
        self._models = models

    def get(self, name: str | None) -> ServedModel | None:
        """The model called `name`, or the default model for None; None when there is no such."""
        if name is None:
            return self._models[0]
        for model in self._models:
            if name in model.names or name == model.given:
                return model
        return None

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def ready(self, max_model_len: int) -> None:
        """The engine has decided how long a context it serves."""
        self._models = tuple(replace(m, max_model_len=max_model_len) for m in self._models)


def find_model(settings: Settings, progress: Progress) -> Path:
    """The folder of `settings.model`, complete enough to start an engine on it.

    A folder here wins over a hub id of the same name. The hub's own variables (HF_TOKEN, HF_HOME,
    HF_HUB_OFFLINE, HF_ENDPOINT) are honoured by its library.

    Raises:
        ConfigError: it is not there, may not be had, or is no checkpoint that octavo reads.
    """
    model = settings.model
    folder = TARGET if model == BUNDLED else Path(model).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise ModelNotFound(
                f"{model} is a file; octavo serves folders with config.json and *.safetensors."
            )
        if not _HUB_ID.fullmatch(model):
            raise ModelNotFound(f"There is no folder {model}, and it is no hub id either.")
        from .hub import download

        folder = download(model, settings.revision, wanted=_HUB_FILES, progress=progress)
    read_model_config(folder)
    if settings.load_format != "dummy":
        weight_files(folder)
    return folder


def _own_name(model: str, folder: Path) -> str:
    if model == BUNDLED:
        return BUNDLED_NAME
    is_folder = Path(model).expanduser().is_dir()
    return folder.resolve().name if is_folder else model


def _sampling_defaults(
    config: ModelConfig, folder: Path, settings: Settings
) -> Mapping[str, int | float]:
    if settings.generation_config == "none":
        return {}
    try:
        SamplingParams(**config.sampling_defaults)  # type: ignore[arg-type]
    except (InvalidParameter, TypeError) as error:
        raise BrokenCheckpoint(
            f"{folder / 'generation_config.json'}: {str(error).rstrip('.')}; start with "
            f"--generation-config none to do without it."
        ) from None
    return config.sampling_defaults
