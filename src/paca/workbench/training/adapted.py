"""Finds and loads what a user names after training: a run's folder, an adapter, or a plain model."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paca.errors import PacaError
from paca.tuner.model import TRL_REFERENCE
from paca.workbench.base import yaml
from paca.workbench.base.messages import suggestion
from paca.workbench.data.documents import near_files
from paca.workbench.models.adapter_files import ADAPTER, CONFIG, adapter_folder, base_name
from paca.workbench.models.embedded import EMBEDDED
from paca.workbench.models.load import load_model, load_tokenizer
from paca.workbench.models.section import DTYPES
from paca.workbench.recipe.tasks import IMAGES, TEXT
from paca.workbench.training.run_folder import RECIPE

OTHER_WEIGHTS = "Adapter .* was trained on other pretrained weights"


@dataclass(frozen=True)
class Source:
    """What a name stands for.

    Args:
        base: The base model's name.
        adapter: The adapter's folder; None for a plain model.
        dtype: The precision that the run held the base model in; `auto` where no recipe tells.
        quantization: The recipe's `model.quantization`.
        tokenizer: Where the tokenizer is: the adapter's folder if it brings one, else the base model.
        config: The recipe's `model.config`.
    """

    base: str
    adapter: Path | None
    dtype: str = "auto"
    quantization: Any = None
    tokenizer: str = ""
    config: Any = None

    @property
    def brings_tokenizer(self) -> bool:
        """Whether the adapter has a tokenizer of its own, with a chat template that its base has not."""
        return self.adapter is not None and self.tokenizer == str(self.adapter)


def find_source(name: str) -> Source:
    """Tell what has to be loaded for a name.

    It is a run's output folder, an adapter's folder, a model's folder, an embedded model, or a name on the Hub. A
    PacaError if a folder holds neither an adapter nor a model, or the adapter is not one of a text model.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return Source(name, None, tokenizer=name)
    adapter = adapter_folder(folder)
    if adapter is None:
        _check_model_folder(folder)
        return Source(str(folder), None, tokenizer=str(folder))
    base = base_name(adapter)
    model, task = _recipe_model(adapter)
    embedded = EMBEDDED.get(str(model.get("name")))
    if embedded is not None and embedded.hub == base:  # the weights it was trained on, and not those they were made of
        base = str(model["name"])
    if task == IMAGES or (adapter / "classes.json").is_file():
        raise PacaError(
            f"The adapter in {str(adapter)!r} is of an image classifier; this verb takes text models only."
        )
    brings_tokenizer = (adapter / "tokenizer_config.json").is_file() and (adapter / "tokenizer.json").is_file()
    return Source(
        base,
        adapter,
        model.get("dtype", "auto"),
        model.get("quantization"),
        str(adapter) if brings_tokenizer else base,
        model.get("config"),
    )


def find_adapter(name: str) -> Source:
    """Find the adapter in a run's output folder or an adapter's folder; a PacaError if there is none."""
    if not Path(name).expanduser().is_dir():
        near = near_files(Path(name))
        raise PacaError(f"There is no folder {name!r}{near}; name a run's output folder or an adapter's folder.")
    source = find_source(name)
    if source.adapter is None:
        raise PacaError(f"There is no adapter in {name!r}: it holds no {CONFIG}, nor does a folder {ADAPTER}/ in it.")
    return source


def load_adapted(source: Source, dtype: str | None = None) -> tuple[Any, Any]:
    """Load a model, with its adapter if there is one, in evaluation mode on the device there is; and the tokenizer.

    `dtype` is the precision of the base model, by default that of the run. A PacaError if something is missing or
    damaged.
    """
    import torch

    if dtype is not None and dtype not in DTYPES:
        raise PacaError(f"--dtype {dtype!r}: expected one of {', '.join(DTYPES)}{suggestion(dtype, DTYPES)}.")
    tokenizer = load_tokenizer(source.tokenizer)
    model = load_model(source.base, dtype or source.dtype, source.quantization, source.config)
    if torch.cuda.is_available() and source.quantization is None:
        model = model.to("cuda")
    if source.adapter is not None:
        model = put_on(model, source.adapter)
    return model.eval(), tokenizer


def put_on(model: Any, adapter: Path, trained: bool = False) -> Any:
    """Load an adapter's folder onto its base model; a PacaError if the files are damaged or don't fit the model.

    `trained` is for an adapter that will be trained on: then another base model's weights are an error as well.
    """
    from peft import PeftModel

    from paca.workbench.methods.registry import register_methods

    register_methods()
    with _damage_explained(adapter), warnings.catch_warnings():
        if trained:
            warnings.filterwarnings("error", message=OTHER_WEIGHTS)
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=trained)


@contextlib.contextmanager
def _damage_explained(adapter: Path | None) -> Iterator[None]:
    """Turn what damaged or unfitting files raise into a PacaError."""
    try:
        yield
    except PacaError:
        raise
    except UserWarning as warning:
        raise PacaError(f"{warning} Training would not go on from what this adapter learned.") from warning
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PacaError(f"The adapter in {str(adapter)!r} can't be loaded: {first}") from error


class SharedBase:
    """Loads sources one after another, and a base model that the next has as well only once.

    What was loaded before is used up by the next `load`.
    """

    def __init__(self) -> None:
        self._kind: Any = None
        self._model: Any = None

    def load(self, source: Source, dtype: str | None = None) -> tuple[Any, Any]:
        """What `load_adapted` does."""
        kind = (source.base, dtype or source.dtype, repr(source.quantization), repr(source.config))
        base = self._base() if kind == self._kind else None
        self._model = None  # before another is loaded
        if base is None:
            self._model, tokenizer = load_adapted(source, dtype)
        else:
            tokenizer = load_tokenizer(source.tokenizer)
            self._model = (base if source.adapter is None else put_on(base, source.adapter)).eval()
        self._kind = kind
        return self._model, tokenizer

    def _base(self) -> Any:
        """The base model again, bit for bit; None where a method (such as prompt tuning) does not give it back."""
        if not hasattr(self._model, "peft_config"):
            return self._model
        give_back = getattr(self._model.base_model, "unload", None)
        return give_back() if give_back else None


@contextlib.contextmanager
def with_reference(model: Any, adapter: Path) -> Iterator[None]:
    """Inside a `with` block, have a `PeftModel` hold another adapter as the reference that it is compared with."""
    with _damage_explained(adapter):
        model.load_adapter(str(adapter), TRL_REFERENCE)
    try:
        yield
    finally:
        model.delete_adapter(TRL_REFERENCE)


@dataclass(frozen=True)
class NamedAdapter:
    """One of several adapters on a model.

    Args:
        name: What a user calls it.
        key: What PEFT does.
        tokenizer: The adapter's own, or its base model's.
    """

    name: str
    key: str
    tokenizer: Any


def load_several(names: Sequence[str], dtype: str | None = None) -> tuple[Any, list[NamedAdapter]]:
    """Load a base model once with several adapters on it, of which the first is active, in evaluation mode.

    A PacaError if a name is that of no adapter, or the adapters are not all of one base model.

    Args:
        names: Runs' output folders, or adapters' folders.
        dtype: The precision of the base model; by default that of the first adapter's run.

    Returns:
        The model, and its adapters in order, named after their runs.
    """
    sources = [find_adapter(name) for name in names]
    first = sources[0]
    for name, source in zip(names, sources, strict=True):
        if source.base != first.base:
            raise PacaError(
                f"The adapters in {names[0]!r} and {name!r} are of two base models, {first.base!r} and "
                f"{source.base!r}; name adapters of one."
            )
    model, tokenizer = load_adapted(first, dtype)
    adapters = [NamedAdapter(_called(first, set()), "default", tokenizer)]
    for number, source in enumerate(sources[1:], start=2):
        key = f"adapter-{number}"
        _load_beside(model, source, key)
        taken = {adapter.name for adapter in adapters}
        adapters.append(NamedAdapter(_called(source, taken), key, load_tokenizer(source.tokenizer)))
    model.set_adapter("default")
    return model.eval(), adapters


def _load_beside(model: Any, source: Source, key: str) -> None:
    with _damage_explained(source.adapter):
        model.load_adapter(str(source.adapter), key)


def _called(source: Source, taken: set[str]) -> str:
    """The name of the run's folder, or of the adapter's own; with a number if another has it."""
    folder = (source.adapter or Path()).resolve()
    name = folder.parent.name if folder.name == ADAPTER else folder.name
    return name if name not in taken else next(f"{name}-{n}" for n in range(2, 1000) if f"{name}-{n}" not in taken)


def _recipe_model(adapter: Path) -> tuple[dict[str, Any], str]:
    """The model section and the task of the recipe that lies beside an adapter, as far as they are given."""
    path = adapter.parent / RECIPE
    if not path.is_file():
        return {}, TEXT
    try:
        content = yaml.parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PacaError(f"The run's recipe {path} is not valid YAML: {error}") from error
    content = content if isinstance(content, dict) else {}
    model = content.get("model")
    return model if isinstance(model, dict) else {}, str(content.get("task", TEXT))


def _check_model_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise PacaError(
            f"The folder {str(folder)!r} holds neither an adapter ({CONFIG}) nor a model (config.json). Name a run's "
            f"output folder, an adapter, a model's folder, or an embedded model ({', '.join(EMBEDDED)})."
        )
