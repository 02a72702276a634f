"""Text as rows of tokens: packed without gaps, or one text a row with padding behind it.

Rows are of one length, so that a shard is a memory-mapped column of fixed-shape tensors. Tokens are
int32. Of a language model, the labels are the tokens that follow each position; `IGNORED` marks
those that do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_snake.data.partition import Rows
from ray_snake.data.shards import (
    IGNORED,
    check_shard,
    label_values,
    make_table,
    metadata_of,
    read_table,
    write_shard,
)
from ray_snake.errors import DataError
from ray_snake.hub import CONFIG, TOKENIZER, local_folder
from ray_snake.location import without_secrets

Tokens = NDArray[np.int32]
Layout = Literal["packed", "padded"]
LONGEST_ROW = 2**20
"""Tokens that a row may have: as many as any model's context."""


class Tokenizer(Protocol):
    """Turns text into numbers.

    Attributes:
        name: What `load_tokenizer` takes for it.
        vocabulary: How many different tokens there are.
        padding: The token of padding.
        end: The token behind a text.
    """

    name: str
    vocabulary: int
    padding: int
    end: int

    def plain(self, text: str) -> list[int]:
        """Return the tokens of a text and nothing else."""

    def whole(self, text: str, limit: int | None = None) -> list[int]:
        """Return the tokens of a text with those that mark its ends, at most `limit` of them."""


class ByteTokenizer:
    """A token for each of the 256 bytes of UTF-8, one for the end, one for padding."""

    name = "bytes"
    vocabulary = 258
    end = 256
    padding = 257

    def plain(self, text: str) -> list[int]:
        """Return the bytes."""
        return list(text.encode())

    def whole(self, text: str, limit: int | None = None) -> list[int]:
        """Return the bytes and the end, which is there however short the limit."""
        return [*text.encode()[: None if limit is None else limit - 1], self.end]


class PretrainedTokenizer:
    """A tokenizer of transformers. Needs the extra `hf`.

    Args:
        name: A folder, or an id of a model hub.

    Raises:
        DataError: If transformers is not there, there is no such tokenizer, or it has no token that
            ends a text.
    """

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise DataError(
                f"tokenizer {name}",
                f"needs transformers ({error})",
                "pip install 'ray-snake[hf]', or use the tokenizer 'bytes'",
            ) from None
        try:
            # Some tokenizers are known by their model's kind alone.
            folder = local_folder(name, [CONFIG, *TOKENIZER])
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise DataError(
                f"tokenizer {name}",
                f"can't be loaded ({' '.join(str(error).split())[:200]})",
                "give 'bytes', a folder with a tokenizer, or an id that this machine can fetch",
            ) from None
        self.name = name
        self.vocabulary = len(self._tokenizer)
        end = self._tokenizer.eos_token_id
        end = self._tokenizer.sep_token_id if end is None else end
        if end is None:
            raise DataError(
                f"tokenizer {name}", "has no token that ends a text", "set its eos_token"
            )
        self.end: int = end
        padding = self._tokenizer.pad_token_id
        # Many decoders have none. Their rows are padded on the right with what ends a text.
        self.padding: int = end if padding is None else padding

    def plain(self, text: str) -> list[int]:
        """Return the tokens without any that mark ends."""
        found: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return found

    def whole(self, text: str, limit: int | None = None) -> list[int]:
        """Return the tokens with those that the model's own inputs have."""
        found: list[int] = self._tokenizer(
            text, truncation=limit is not None, max_length=limit, verbose=False
        ).input_ids
        return found or [self.end]


def load_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of a name: `bytes`, a folder, or an id of a model hub.

    Raises:
        DataError: If there is no such tokenizer.
    """
    return ByteTokenizer() if name == ByteTokenizer.name else PretrainedTokenizer(name)


def packed(texts: Iterable[str], tokenizer: Tokenizer, length: int) -> tuple[Tokens, Tokens, Rows]:
    """Return texts one behind the other, each with its end token, cut into rows.

    No token is lost: the last row is filled up with padding, whose labels are `IGNORED`. A row's
    first position knows nothing of the row before.

    Args:
        texts: The texts, in order.
        tokenizer: Makes tokens of them.
        length: Tokens of a row.

    Returns:
        Tokens and labels, each int32 (rows, length), and the number, from 0, of the text that each
        row's first token is of, int64 (rows,); no rows without texts.
    """
    pieces = [np.array([*tokenizer.plain(text), tokenizer.end], dtype=np.int32) for text in texts]
    stream = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
    if len(stream) < 2:
        return _no_rows(length)
    inputs, labels = stream[:-1], stream[1:]
    missing = -len(inputs) % length
    ends = np.cumsum([len(piece) for piece in pieces])
    return (
        np.pad(inputs, (0, missing), constant_values=tokenizer.padding).reshape(-1, length),
        np.pad(labels, (0, missing), constant_values=IGNORED).reshape(-1, length),
        np.searchsorted(ends, np.arange(0, len(inputs), length), side="right"),
    )


def padded(texts: Iterable[str], tokenizer: Tokenizer, length: int) -> Tokens:
    """Return each text in a row of its own, cut to length or padded on the right.

    Args:
        texts: The texts, one for each row.
        tokenizer: Makes tokens of them, with those that mark their ends.
        length: Tokens of a row.

    Returns:
        Tokens, int32 (rows, length).
    """
    return _filled([tokenizer.whole(text, length) for text in texts], length, tokenizer.padding)


def padded_language(
    texts: Iterable[str], tokenizer: Tokenizer, length: int
) -> tuple[Tokens, Tokens, Rows]:
    """Return each text in a row of its own, with what follows each of its tokens.

    Args:
        texts: The texts. Of one that has more than length + 1 tokens, the others are left out; one
            without tokens gives no row.
        tokenizer: Makes tokens of them, with those that mark their ends.
        length: Tokens of a row.

    Returns:
        Tokens and labels, each int32 (rows, length), and the number, from 0, of each row's text,
        int64 (rows,); labels of padding are `IGNORED`.
    """
    rows = [tokenizer.whole(text) for text in texts]
    rows = [row if row[-1] == tokenizer.end else [*row, tokenizer.end] for row in rows]
    numbers = np.flatnonzero([len(row) > 1 for row in rows])
    rows = [rows[number][: length + 1] for number in numbers]
    return (
        _filled([row[:-1] for row in rows], length, tokenizer.padding),
        _filled([row[1:] for row in rows], length, IGNORED),
        numbers,
    )


def tokenize_table(
    table: pa.Table,
    tokenizer: Tokenizer,
    *,
    length: int,
    layout: Layout = "packed",
    text: str = "text",
    label: str | None = None,
    keep: Sequence[str] = (),
    subject: str = "table",
) -> pa.Table:
    """Turn a column of text into inputs, with the tokens that follow or classes as labels.

    Args:
        table: With the column.
        tokenizer: Makes tokens of it.
        length: Tokens of a row, 2 to `LONGEST_ROW`.
        layout: `packed` or `padded`.
        text: Name of the column.
        label: Name of a column of classes to keep as the labels; it needs the layout `padded`.
        keep: Names of further columns: each row gets the values of the text that it begins in. So
            rows of tokens can be dealt to nodes by author or title.
        subject: What errors call the table.

    Returns:
        A table with the columns `input`, `label` and those kept. Its metadata is the table's, with
        `tokenizer`, `vocabulary` and `padding`.

    Raises:
        DataError: If a column is missing or of another type, there is no text in it, classes can't
            be kept, or the length is out of range.
    """
    if length < 2:
        raise DataError("length", f"{length} leaves nothing to predict", "give 2 or more")
    if length > LONGEST_ROW:
        raise DataError(
            "length", f"{length} tokens are more than a row may have", f"give {LONGEST_ROW} or less"
        )
    for name in (text, label, *keep):
        if name is not None and name not in table.column_names:
            raise DataError(
                subject,
                f"has no column {name!r}, only {', '.join(table.column_names) or 'none at all'}",
                "name one of these as the text, the label or one to keep",
            )
    taken = sorted({"input", "label"} & set(keep))
    if taken:
        raise DataError(
            f"column {taken[0]}",
            "can't be kept beside the tokens' own of that name",
            "rename it, or name it as the label",
        )
    if label is not None and layout == "packed":
        raise DataError(
            f"label {label}",
            "belongs to one text, and packed rows hold parts of several",
            "choose the layout padded, or leave the label out",
        )
    texts = _texts(table.column(text), subject, text)
    facts = {
        **metadata_of(table.schema),
        "tokenizer": tokenizer.name,
        "vocabulary": tokenizer.vocabulary,
        "padding": tokenizer.padding,
    }
    if label is not None:
        classes = label_values(table.column(label), subject, label, key="the label")
        made = make_table(padded(texts, tokenizer, length), classes, facts)
        return _with_kept(made, table, keep, np.arange(len(texts)))
    facts.pop("classes", None)
    rows = packed if layout == "packed" else padded_language
    inputs, labels, numbers = rows(texts, tokenizer, length)
    if not len(inputs):
        raise DataError(subject, f"column {text!r} holds no text", "name a column with text")
    return _with_kept(make_table(inputs, labels, facts), table, keep, numbers)


def tokenize_file(
    source: str,
    out: str,
    tokenizer: Tokenizer,
    *,
    length: int,
    layout: Layout = "packed",
    text: str = "text",
    label: str | None = None,
    keep: Sequence[str] = (),
) -> pa.Table:
    """Turn a file of text into a shard of tokens.

    Args:
        source: An Arrow IPC or Parquet file with a column of text, or a local plain text file
            (`.txt`, UTF-8), which is one text.
        out: The file to write, a path or a URI.
        tokenizer: As for `tokenize_table`, like all that follows.
        length: Likewise.
        layout: Likewise.
        text: Likewise.
        label: Likewise.
        keep: Likewise.

    Returns:
        The table that was written.

    Raises:
        DataError: If the source can't be used, or is `out` itself.
        StorageError: If `out` can't be written.
    """
    if source == out or ("://" not in source + out and _same_file(Path(source), Path(out))):
        raise DataError(out, "is the file of text itself", "write the tokens to another file")
    check_shard(out)
    if "://" not in source and Path(source).suffix == ".txt":
        table = pa.table({text: [_read_text(Path(source).expanduser())]})
    else:
        columns = [name for name in (text, label) if name is not None]
        table = read_table(source, list(dict.fromkeys([*columns, *keep])))
    made = tokenize_table(
        table,
        tokenizer,
        length=length,
        layout=layout,
        text=text,
        label=label,
        keep=keep,
        subject=without_secrets(source),
    )
    write_shard(out, made)
    return made


def _no_rows(length: int) -> tuple[Tokens, Tokens, Rows]:
    empty = np.empty((0, length), np.int32)
    return empty, empty, np.empty(0, np.int64)


def _with_kept(made: pa.Table, table: pa.Table, keep: Sequence[str], numbers: Rows) -> pa.Table:
    for name in dict.fromkeys(keep):
        made = made.append_column(name, table.column(name).take(pa.array(numbers)))
    return made


def _filled(rows: Sequence[Sequence[int]], length: int, filling: int) -> Tokens:
    found = np.full((len(rows), length), filling, dtype=np.int32)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return found


def _same_file(one: Path, other: Path) -> bool:
    return one.expanduser().resolve() == other.expanduser().resolve()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(str(path), "no such file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"can't be read as UTF-8 ({error})", "convert it") from None


def _texts(column: pa.ChunkedArray, subject: str, name: str) -> Sequence[str]:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(
            subject, f"column {name!r} is {column.type}, not text", "name another column as text"
        )
    if column.null_count:
        raise DataError(
            subject, f"column {name!r} has rows without text", "fill or drop rows with nulls"
        )
    found: list[str] = column.to_pylist()
    return found
