"""Find and load the checkpoint a user names, or say in one line why it cannot be loaded.

Small files come first: the configuration decides whether vtfast can prune the model at all and
whether the plan fits it, and the processor whether the prompt can be encoded. Weights come last.
"""

import os
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub import logging as hub_logging
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASS_OF,
)
from transformers.utils import logging

from vtfast.errors import InputError, UnsupportedModelError
from vtfast.models import SUPPORTED
from vtfast.patching import patch
from vtfast.processors import Qwen25VLProcessor

_LOGS = (logging, hub_logging)
_LARGE_MODEL = 20e9  # bytes of the weights of a 7B model, and room to spare
_HUB_SECONDS = 10  # for the hub to answer; transformers itself would retry for half a minute


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be loaded: its configuration and processor are read, its weights not yet.

    Attributes:
        name: what the user called it.
        config, processor: as transformers reads them.
        offline: whether to read files from the local cache only, without asking the hub.
        model: the model itself if it is in memory already, in float32; None if it has to be loaded.
    """

    name: str
    config: PreTrainedConfig
    processor: Any
    offline: bool = False
    model: PreTrainedModel | None = None

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

        Raises InputError for files that are missing, damaged or do not fit the configuration.
        """
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
    """The checkpoint called `name`: a local folder or a hub id.

    Raises InputError if there is none or it cannot be read, and UnsupportedModelError, before any
    weights are read, for a model that vtfast cannot prune.
    """
    offline = _find_folder(name) or _find_on_hub(name)
    with _reading(name, "configuration"):
        raw, _ = PreTrainedConfig.get_config_dict(name, local_files_only=offline)
    _check_supported(name, raw)
    with _reading(name, "configuration"):
        config = AutoConfig.from_pretrained(name, local_files_only=offline)
    return Checkpoint(name, config, load_processor(name, offline), offline)


def load_processor(name: str, offline: bool = True) -> Any:
    """The processor of a checkpoint; vtfast's own if it needs torchvision, which is not installed.

    Raises InputError if it cannot be loaded.
    """
    with _reading(name, "processor"):
        try:
            return AutoProcessor.from_pretrained(name, local_files_only=offline)
        except ImportError as error:
            if "torchvision" not in str(error).lower():
                raise
            return Qwen25VLProcessor.from_pretrained(name, local_files_only=offline)


def _check_supported(name: str, config: dict[str, Any]) -> None:
    """Refuse a model class that vtfast does not support; `config` is the raw config.json."""
    kind = config.get("model_type")
    classes = config.get("architectures") or [CLASS_OF.get(str(kind))]
    if not set(classes) & set(SUPPORTED):
        known = classes[0] or (f"a model of type {kind!r}" if kind else "no model of transformers")
        raise UnsupportedModelError(
            f"--model {name} is {known}; vtfast prunes {' and '.join(SUPPORTED)}, such as "
            "llava-hf/llava-1.5-7b-hf and Qwen/Qwen2.5-VL-7B-Instruct"
        )


def _find_folder(name: str) -> bool:
    """Whether `name` is a checkpoint folder; raises if it is a path of another kind."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"--model {name}: the folder has no config.json; pass the folder that "
                "save_pretrained wrote"
            )
        return True
    if path.exists():
        raise InputError(f"--model {name} is a file; pass the folder it is in")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise InputError(f"--model {name}: there is no such folder")
    return False


def _find_on_hub(name: str) -> bool:
    """Whether only the local cache has the checkpoint; False if the hub can be asked and has it."""
    start = f"--model {name}: there is no such folder here, and "
    try:
        cached = isinstance(try_to_load_from_cache(name, constants.CONFIG_NAME), str)
        HfApi().model_info(name, timeout=_HUB_SECONDS)
        hf_hub_download(name, constants.CONFIG_NAME)
    except HFValidationError:
        raise InputError(f"{start}it is not a hub id, which looks like owner/name") from None
    except GatedRepoError:
        raise InputError(
            f"--model {name}: the model is gated; accept its terms at {constants.ENDPOINT}/{name}, "
            "then log in: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{start}{constants.ENDPOINT} has no such model, or it is private; check the spelling, "
            "or log in: hf auth login"
        ) from None
    except OfflineModeIsEnabled:
        reason, fix = "HF_HUB_OFFLINE keeps it from being downloaded", "unset it"
    except EntryNotFoundError:
        raise InputError(
            f"--model {name}: the repository has no config.json, so transformers cannot load it"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason, fix = f"{constants.ENDPOINT} answers with status {status}", "try again later"
    except PermissionError as error:
        reason = f"it cannot be kept in {constants.HF_HUB_CACHE} ({short(error)})"
        fix = "set HF_HOME to a folder of yours"
    except (HTTPError, OSError) as error:
        reason, fix = f"{constants.ENDPOINT} cannot be reached ({short(error)})", "go online"
    else:
        return False
    if cached:
        return True
    raise InputError(
        f"{start}it is not in the local cache; {reason}; {fix}, or pass a local folder"
    )


def hub_cache() -> str:
    """The folder in which models from the hub are kept, and its free space.

    Raises UserWarning, with what to do, if it has no room for a 7B model or is not writable.
    """
    folder = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free, fix = shutil.disk_usage(there).free, "set HF_HOME to a folder of yours with room"
    about = f"{folder}, {free / 1e9:.0f} GB free"
    if constants.HF_HUB_OFFLINE:
        about += ", offline (HF_HUB_OFFLINE)"
    if not os.access(there, os.W_OK):
        raise UserWarning(f"{about}, is not writable: {fix}")
    if free < _LARGE_MODEL:
        raise UserWarning(f"{about}, has no room for a 7B model: {fix}")
    return about


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


def short(error: Exception) -> str:
    """An error's message on one line, at most 300 characters long."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
