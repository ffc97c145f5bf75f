"""Where a checkpoint is: which files a local folder or a repository on the hub has.

What cannot be found or reached is one line that says what to do.
"""

import os
import shutil
import textwrap
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from vtfast.errors import InputError

ADAPTER = "adapter_config.json"  # the configuration of a PEFT adapter
_LARGE_MODEL = 20e9  # bytes of the weights of a 7B model, and room to spare
_HUB_SECONDS = 10  # for the hub to answer; transformers itself would retry for half a minute


def checkpoint_files(name: str) -> tuple[set[str], bool]:
    """The names of the files of a local folder or hub id, and whether to read them offline.

    There is a configuration among them, of a model or of an adapter. Offline means that only the
    folder, or only the local cache, is to be read.

    Raises InputError if there is no such checkpoint.
    """
    return _find_folder(name) or _find_on_hub(name)


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


def short(error: Exception) -> str:
    """An error's message on one line, at most 300 characters long."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")


def _find_folder(name: str) -> tuple[set[str], bool] | None:
    """The files of a checkpoint folder, and True; None for no path; raises for another path."""
    path = Path(name)
    if path.is_dir():
        files = {file.name for file in path.iterdir()}
        if not files & {constants.CONFIG_NAME, ADAPTER}:
            raise InputError(
                f"--model {name}: the folder has no config.json; pass the folder that "
                "save_pretrained wrote"
            )
        return files, True
    if path.exists():
        raise InputError(f"--model {name} is a file; pass the folder it is in")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise InputError(f"--model {name}: there is no such folder")
    return None


def _find_on_hub(name: str) -> tuple[set[str], bool]:
    """The files of a checkpoint on the hub, and whether only the local cache can be read."""
    start = f"--model {name}: there is no such folder here, and "
    try:
        known = (try_to_load_from_cache(name, file) for file in (constants.CONFIG_NAME, ADAPTER))
        cached = next((Path(path) for path in known if isinstance(path, str)), None)
        info = HfApi().model_info(name, timeout=_HUB_SECONDS)
        files = {file.rfilename for file in info.siblings or ()}
        hf_hub_download(name, ADAPTER if ADAPTER in files else constants.CONFIG_NAME)
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
        return files, False
    if cached:
        return {file.name for file in cached.parent.iterdir()}, True
    raise InputError(
        f"{start}it is not in the local cache; {reason}; {fix}, or pass a local folder"
    )
