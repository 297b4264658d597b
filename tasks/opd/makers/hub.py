"""Models of the Hugging Face hub: the local copy, or a download; what goes wrong is said with the way out."""
from pathlib import Path

from tasks.opd.core.errors import DataError, OpdError
from tasks.opd.core.files import cache_error
from tasks.opd.store.contents import COPIES


def download(model: str, revision: str, patterns: list[str]) -> Path:
    """The folder with those files of a model at a branch, tag or commit that match a pattern.

    Raises: DataError when it cannot be had, DiskFull when it cannot be kept.
    """
    from huggingface_hub import errors, snapshot_download
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=[COPIES]))
    except (OSError, ValueError, errors.HTTPError, errors.EntryNotFoundError) as error:
        raise refusal(model, revision, error) from error


def refusal(model: str, revision: str, error: Exception) -> OpdError:
    """What keeps a model from being had: of whom the hub, the network and the disk complain, and what to do."""
    from huggingface_hub import constants, errors
    if full := cache_error(error, Path(constants.HF_HUB_CACHE), f"model {model}"):
        return full
    ways = {
        errors.HFValidationError: "`model` is the name of its page on the hub, such as Qwen/Qwen3-0.6B",
        errors.GatedRepoError: "accept its terms on its page on the hub, and set HF_TOKEN",
        errors.RepositoryNotFoundError: "look at the spelling of `model`; if it is private, set HF_TOKEN",
        errors.RevisionNotFoundError: "`revision` is one of its branches, tags or commits, main for example",
    }
    way = next((way for kind, way in ways.items() if isinstance(error, kind)), "look at the network, or try again")
    if constants.HF_HUB_OFFLINE and isinstance(error, errors.LocalEntryNotFoundError):
        way = "HF_HUB_OFFLINE is set, and there is no local copy: set HF_HUB_OFFLINE=0 to download it"
    said = " ".join(str(error).split()).rstrip(".")
    return DataError(f"model {model} at {revision} cannot be had from the hub: {said}. Way out: {way}; or give "
                     "a folder instead ({name: folder, path: ...})")
