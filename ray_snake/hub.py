"""Models and tokenizers of a model hub, as folders on this machine. Needs the extra `hf`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CONFIG = "config.json"
TOKENIZER = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""What transformers may have of a tokenizer."""


def local_folder(
    name: str, files: Sequence[str], *, revision: str | None = None, fetches: bool = True
) -> Path:
    """Return the folder with some files of a model, fetched into the hub's cache if need be.

    The hub is asked once. Where it can't be reached, what the cache has will do.

    Args:
        name: A folder, which is returned as it is, or an id of the hub (`HF_ENDPOINT`).
        files: Patterns of the files that are asked for; those that a model has not are left out.
        revision: A branch, tag or commit; none: the main branch.
        fetches: Whether what the cache has not may be fetched.

    Raises:
        OSError: If there is no such model, or the hub can't be reached and the cache has nothing.
        ValueError: If the name can be no model's.
    """
    given = Path(name)
    if given.is_dir():
        return given
    # transformers itself would look for each file, many times where it hears nothing.
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        name, revision=revision, allow_patterns=list(files), local_files_only=not fetches
    )
    return Path(folder)
