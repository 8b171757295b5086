"""Encoders that are published on the Hugging Face Hub, fetched into its cache on this machine.

Only settings and safetensors are asked for; pickled weights never leave the Hub. The cache, the
mirror and the offline mode are those of huggingface_hub (HF_HOME, HF_ENDPOINT, HF_TOKEN,
HF_HUB_OFFLINE).
"""

from __future__ import annotations

import re
from pathlib import Path

# an encoder, whole or in shards, and what belongs to it
FILES = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors",
    "codecs/*/config.json", "codecs/*/model.safetensors",
    "head/config.json", "head/model.safetensors",
    "pooling/config.json", "pooling/model.safetensors",
)  # fmt: skip
_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


def is_id(text: str) -> bool:
    """Whether a text may name a repository: owner/name or owner/name@revision."""
    return _ID.fullmatch(text) is not None


def fetch(name: str) -> Path:
    """Give the folder of a published encoder in the cache, fetching what is not there.

    Args:
        name: owner/name, or owner/name@revision with a branch, tag or commit.

    Raises:
        ValueError: there is no such repository or revision, it is closed to this user, or it can
            not be reached and is not in the cache; says how to get the files by hand.
    """
    # a third of a second, which nothing that is on this machine has to wait
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

    parts = _ID.fullmatch(name)
    if parts is None:
        raise ValueError(f"expected owner/name or owner/name@revision on the Hub, got {name!r}")
    hub_id, revision = parts["id"], parts["revision"] or constants.DEFAULT_REVISION
    page = f"{constants.ENDPOINT}/{hub_id}"
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(FILES)))
    except GatedRepoError as error:
        raise ValueError(
            f"{hub_id} is gated: accept its conditions at {page}, then give a token of that "
            "account in the environment variable HF_TOKEN (or run `hf auth login`)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"no repository {hub_id} at {constants.ENDPOINT}, or a private one that needs a token "
            "in the environment variable HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{hub_id} has no revision {revision!r}, see {page}") from error
    except HFValidationError as error:
        raise ValueError(f"{name!r} cannot be the name of a repository: {error}") from error
    except LocalEntryNotFoundError as error:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else None
        why = offline or f"{constants.ENDPOINT} cannot be reached ({_reason(error)})"
        raise ValueError(
            f"{name} is not, or not whole, in the cache {constants.HF_HUB_CACHE}, and {why}. "
            + _by_hand(page, revision)
        ) from error
    except (OSError, EntryNotFoundError, HfHubHTTPError, TransportError, RuntimeError) as error:
        raise ValueError(
            f"{name} could not be fetched from {constants.ENDPOINT} ({_reason(error)}): try again, "
            "what is whole is not fetched twice. " + _by_hand(page, revision)
        ) from error
    weights = (folder / "model.safetensors", folder / "model.safetensors.index.json")
    if not (folder / "config.json").is_file() or not any(file.is_file() for file in weights):
        raise ValueError(
            f"{name} holds no encoder: expected config.json and model.safetensors, see {page} "
            "(pickled weights such as .bin or .pt are never read)"
        )
    return folder


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom, in one line."""
    bottom = error
    while bottom.__cause__ is not None:
        bottom = bottom.__cause__
    return (
        f"{type(bottom).__name__}: {str(bottom).strip().splitlines()[0]}"
        if str(bottom)
        else (type(bottom).__name__)
    )


def _by_hand(page: str, revision: str) -> str:
    owner, folder = page.split("/")[-2:]
    return (
        f"To get it by hand, take from {page}/tree/{revision} the files "
        "config.json and model.safetensors (or model.safetensors.index.json and the shards that it "
        "names), and of every folder of codecs/ its config.json and model.safetensors; keep the "
        f"folders as they are. Where there is a network one command does it: hf download "
        f"{owner}/{folder} "
        f"--revision {revision} --include '*.json' --include '*.safetensors' --local-dir {folder}. "
        f"Copy the folder here and give its path in place of the name: --encoder /path/to/{folder}"
    )
