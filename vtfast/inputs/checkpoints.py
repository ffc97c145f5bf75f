"""Find and load the checkpoint a user names, or say in one line why it cannot be loaded.

Small files come first: the configuration decides whether vtfast can prune the model at all and
whether the plan fits it, and the processor whether the prompt can be encoded. Weights come last.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub import logging as hub_logging
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASS_OF,
)
from transformers.utils import logging

from vtfast import processors
from vtfast.errors import InputError, UnsupportedModelError
from vtfast.inputs.hub import ADAPTER, checkpoint_files, short
from vtfast.models import SUPPORTED
from vtfast.patching import patch

_WEIGHTS = ("model.", "model-", "pytorch_model")  # how names of files with whole weights begin
# Files of which a checkpoint needs one, by what they hold.
_NEEDED = {
    "vocabulary": ("tokenizer.json", "tokenizer.model", "vocab.json"),
    "picture processor": ("preprocessor_config.json", "processor_config.json"),
}
_LOGS = (logging, hub_logging)


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be loaded: its configuration and processor are read, its weights not yet.

    Attributes:
        name: what the user called it.
        config, processor: as transformers reads them.
        offline: whether to read files from the local cache only, without asking the hub.
        model: the model itself if it is in memory already, in float32; None if it has to be loaded.
        base: the checkpoint that `name`, a PEFT adapter, belongs to; None if it is no adapter.
    """

    name: str
    config: PreTrainedConfig
    processor: Any
    offline: bool = False
    model: PreTrainedModel | None = None
    base: "Checkpoint | None" = None

    @property
    def takes_video(self) -> bool:
        """Whether the model has a placeholder token for videos."""
        return getattr(self.config, "video_token_id", None) is not None

    def check_plan(self, **settings: Any) -> None:
        """Raise what `patch(model, **settings)` would raise, without the weights."""
        model = self.model
        if model is None:
            with torch.device("meta"), _reading(self.name, "configuration"):
                model = AutoModelForImageTextToText.from_config(self.config)
        patch(model, **settings).remove()

    def weights(self, device: torch.device, dtype: str) -> Any:
        """The model in eval mode on a device.

        dtype: a name in torch, or "auto": the checkpoint's own dtype on a GPU and float32 on a CPU;
            always float32 for a model that is in memory already.

        An adapter is merged into the weights of its base, so the model is a stock one.

        Raises InputError for files that are missing, damaged or do not fit the configuration.
        """
        if self.base is not None:
            return _merge_adapter(self.name, self.base.weights(device, dtype), self.offline)
        if self.model is not None:
            wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype)
            return self.model.to(device, wanted)  # type: ignore[arg-type]  # wrapped in transformers
        if dtype == "auto" and device.type == "cpu":
            dtype = "float32"
        with _reading(self.name, "weights"):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                self.name, dtype=dtype, local_files_only=self.offline, output_loading_info=True
            )
            model, found = loaded
        missing = sorted(found["missing_keys"])
        if missing:
            raise InputError(
                f"--model {self.name}: {len(missing)} tensors of the model are not in the weights, "
                f"such as {missing[0]}; download or convert the checkpoint again"
            )
        return model.eval().to(device)


def find(name: str) -> Checkpoint:
    """The checkpoint called `name`: a local folder or a hub id, of a model or of a PEFT adapter.

    Raises InputError if there is none or it cannot be read, and UnsupportedModelError, before any
    weights are read, for a model that vtfast cannot prune.
    """
    files, offline = checkpoint_files(name)
    if ADAPTER in files and not any(file.startswith(_WEIGHTS) for file in files):
        return _find_adapter(name, files, offline)
    with _reading(name, "configuration"):
        raw, _ = PreTrainedConfig.get_config_dict(name, local_files_only=offline)
    _check_supported(name, raw)
    with _reading(name, "configuration"):
        config = AutoConfig.from_pretrained(name, local_files_only=offline)
    if what := _missing(files):
        raise InputError(
            f"--model {name}: the {what} is missing ({' or '.join(_NEEDED[what])}); save the "
            "processor of the original model there too: processor.save_pretrained(folder)"
        )
    processor = load_processor(name, offline)
    _check_placeholder(name, processor, config)
    return Checkpoint(name, config, processor, offline)


def _missing(files: set[str]) -> str:
    """What a checkpoint with these files lacks beside its weights; "" if it is complete."""
    return next((what for what, known in _NEEDED.items() if not files & set(known)), "")


def _check_placeholder(name: str, processor: Any, config: PreTrainedConfig) -> None:
    """Refuse a tokenizer that writes a picture as another token than the model expects."""
    token, expected = processor.image_token, config.image_token_id
    found = processor.tokenizer.convert_tokens_to_ids(token)
    if found != expected:
        raise InputError(
            f"--model {name}: its tokenizer has {token} as token {found}, config.json expects "
            f"{expected}; save the processor of the original model there: "
            "processor.save_pretrained(folder)"
        )


def _find_adapter(name: str, files: set[str], offline: bool) -> Checkpoint:
    """The PEFT adapter called `name`, with the base model that it names."""
    with _reading(name, "adapter's configuration"):
        path = Path(name) / ADAPTER
        if not path.is_file():
            path = Path(hf_hub_download(name, ADAPTER, local_files_only=offline))
        base = json.loads(path.read_text()).get("base_model_name_or_path")
    if not base:
        raise InputError(
            f"--model {name} is a PEFT adapter that does not name its base model; write it in "
            f"{ADAPTER} as base_model_name_or_path"
        )
    start = f"--model {name} is a PEFT adapter of {base}"
    if find_spec("peft") is None:
        raise InputError(f"{start}; pip install peft, or pass a checkpoint it is merged into")
    try:
        found = find(base)
    except (InputError, UnsupportedModelError) as error:
        raise type(error)(f"{start}, which cannot be used: {error}") from None
    processor = found.processor
    if not _missing(files):  # the one it was trained with
        with _reading(name, "processor"):  # of a known class: there may be no config.json
            processor = type(processor).from_pretrained(name, local_files_only=offline)
        _check_placeholder(name, processor, found.config)
    return Checkpoint(name, found.config, processor, offline, base=found)


def _merge_adapter(name: str, model: Any, offline: bool) -> Any:
    """The model with the weights of a PEFT adapter merged into its own."""
    from peft import PeftModel

    with _reading(name, "adapter"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # PEFT would go on without what does not fit the base.
        warnings.filterwarnings("error", "Found missing adapter keys")
        folder = name
        if not Path(name).is_dir():
            folder = snapshot_download(name, allow_patterns="adapter_*", local_files_only=offline)
        return PeftModel.from_pretrained(model, folder).merge_and_unload().eval()


def load_processor(name: str, offline: bool = True) -> Any:
    """The processor of a checkpoint, as `vtfast.processors.load` finds it.

    Raises InputError if it cannot be loaded.
    """
    with _reading(name, "processor"):
        return processors.load(name, local_files_only=offline)


def _check_supported(name: str, config: dict[str, Any]) -> None:
    """Refuse a model class that vtfast does not support; `config` is the raw config.json."""
    kind = config.get("model_type")
    classes = config.get("architectures") or [CLASS_OF.get(str(kind))]
    if not set(classes) & set(SUPPORTED):
        known = classes[0] or (f"a model of type {kind!r}" if kind else "no model of transformers")
        raise UnsupportedModelError(
            f"--model {name} is {known}; vtfast prunes {', '.join(SUPPORTED)}, such as "
            "llava-hf/llava-1.5-7b-hf and Qwen/Qwen2.5-VL-7B-Instruct"
        )


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Silence the logs of transformers and the hub but for errors; show progress bars if asked."""
    levels, shown = [log.get_verbosity() for log in _LOGS], logging.is_progress_bar_enabled()
    for log in _LOGS:
        log.set_verbosity_error()
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    try:
        yield
    finally:
        for log, level in zip(_LOGS, levels, strict=True):
            log.set_verbosity(level)
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()


@contextmanager
def _reading(name: str, what: str) -> Iterator[None]:
    """Turn any error of transformers about the checkpoint's files into one line."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"--model {name}: cannot load its {what}: {short(error)}") from error
