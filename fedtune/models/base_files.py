"""Where a base model's files are (embedded, a local folder, the hub), and their digest."""

import functools
import hashlib
import os
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers.utils.hub import cached_file

from fedtune.config.model import ModelConfig
from fedtune.data.digests import file_digest
from fedtune.errors import InputError

_EMBEDDED = Path(__file__).parent / "embedded"
_EMBEDDED_NAME = "fedtune:embedded"
_READ = {".bin", ".jinja", ".json", ".model", ".pt", ".py", ".safetensors", ".txt"}
_KINDS = "`embedded`, a folder with config.json, weights and tokenizer, or a hub id"


def embedded_folder() -> Path:
    """Where the embedded model's files are."""
    return _EMBEDDED


def published_name(path: str) -> str:
    """What files that leave this machine call the base model `path`.

    The embedded model's name has a colon: no repository of the hub can have it, so that nothing
    that is found there is ever taken for it.
    """
    return _EMBEDDED_NAME if path == "embedded" else path


def path_of(published: str) -> str:
    """Undo `published_name`."""
    return "embedded" if published == _EMBEDDED_NAME else published


def local_folder(model: ModelConfig) -> Path | None:
    """The folder that `model.path` names; None when it is a hub id.

    Raises InputError when it is neither, and for a revision of a folder, which has none.
    """
    if model.path == "embedded":
        return _EMBEDDED
    if os.path.isdir(model.path):  # noqa: PTH112 - a name may be too long for pathlib
        if model.revision is not None:
            raise InputError(
                f"`{model.path}` is a folder, which has no revisions",
                where="model.revision",
                mend="leave it out, or name a hub id in `model.path`",
            )
        return Path(model.path)
    try:
        validate_repo_id(model.path)
    except HFValidationError:
        raise InputError(
            f"there is no folder `{model.path}`",
            where="model.path",
            expected=_KINDS,
            mend="check the path; it is relative to the folder the command runs in, without `~`",
        ) from None
    return None


@functools.cache
def hub_answers(path: str, revision: str | None) -> bool:
    """Whether the hub can be reached, asked once without the many retries of a download.

    Raises InputError when it answers that there is no such model, or none for this user.
    """
    try:
        get_hf_file_metadata(hf_hub_url(path, "config.json", revision=revision))
    except RevisionNotFoundError:
        raise InputError(f"`{path}` has no revision `{revision}`", where="model.revision") from None
    except RepositoryNotFoundError as error:
        gated = isinstance(error, GatedRepoError)
        raise InputError(
            f"the hub {'gives' if gated else 'has'} no model `{path}` {'to' if gated else 'for'} "
            "this user, and there is no such folder",
            where="model.path",
            expected=_KINDS,
            mend="check the name, and `hf auth login` where a model isn't public",
        ) from None
    except Exception:  # the hub's client has no common error class
        return False
    return True


def not_kept(model: ModelConfig) -> InputError:
    """What to say of a hub model that is not on this disk, when the hub can't be reached."""
    return InputError(
        f"there is no folder `{model.path}`, no such model in the hub's cache on this disk, and "
        "the hub can't be reached",
        where="model.path",
        expected=_KINDS,
        mend="check the name and the network, or download the model and name its folder",
    )


def base_digest(model: ModelConfig) -> str:
    """SHA-256 over the names and contents of the files that a base model is loaded from."""
    folder = local_folder(model)
    if folder is None:  # the run has just loaded it: the hub's cache has it
        config = cached_file(
            model.path, "config.json", revision=model.revision, local_files_only=True
        )
        folder = Path(config).parent
    read = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _READ)
    parts = [f"{path.name} {file_digest(path)}" for path in read]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
