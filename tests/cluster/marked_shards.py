"""Shards whose rows are recognised wherever they turn up, and what to look for.

Run by itself it writes them, so that the process that trains on them never had them:
`python marked_shards.py FOLDER SEED`. A row begins with a mark that all rows of its shard share;
the rest of a row is random. So whatever holds any row of a shard, holds its mark.
"""

import sys
from pathlib import Path

import numpy as np

ROWS = 64
WIDTH = 16
CLASSES = 4096
SHARDS = ("floats", "bytes", "tokens")
# How many values of a row are its mark; four 8-bit ones could be anything.
MARK = 4
BYTES_MARK = 12
TARGETS = 3


class Marks:
    """The rows of the three shards, drawn from a seed.

    `floats` are float32 rows with a mean and a deviation to take off, and float32 targets.
    `bytes` are 8-bit rows that are scaled and normalised, and `tokens` are int64 rows; both have
    class labels, all of one class, so that labels are recognised in any order of the rows.
    """

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        # Sums of few powers of two: exact in float32, before and after a mean is taken off.
        self.floats = (rng.integers(2**18, 2**19, (ROWS, WIDTH)) / 64 + 1 / 128).astype("float32")
        targets = rng.integers(2**18, 2**19, TARGETS) / 64 + 1 / 128
        self.targets = np.tile(targets.astype("float32"), (ROWS, 1))
        self.bytes = rng.integers(100, 256, (ROWS, WIDTH)).astype("uint8")
        self.tokens = rng.integers(2**30, 2**31, (ROWS, WIDTH))
        self.classes = [int(one) for one in rng.choice(np.arange(1000, CLASSES), 2, replace=False)]
        for rows, width in ((self.floats, MARK), (self.tokens, MARK), (self.bytes, BYTES_MARK)):
            rows[:, :width] = rows[0, :width]

    def write(self, folder):
        """Write the shards as Arrow files."""
        from ray_snake.data import make_table, write_shard

        labels = [self.targets, *(np.full(ROWS, one) for one in self.classes)]
        facts = [{"mean": [1000.0], "std": [0.25]}, {"mean": [0.5]}, {}]
        for name, targets, fact in zip(SHARDS, labels, facts, strict=True):
            write_shard(folder / f"{name}.arrow", make_table(getattr(self, name), targets, fact))

    def patterns(self):
        """Return regular expressions for bytes, by the shard and the form in which its rows are."""
        floats, targets = self.floats[0, :MARK], self.targets[0]
        few, tokens = self.bytes[0, :BYTES_MARK], self.tokens[0, :MARK]
        loaded = (floats - np.float32(1000)) / np.float32(0.25)
        scaled = few.astype("float32") / np.float32(255) - np.float32(0.5)
        found = {
            "floats: stored": _exactly(floats),
            "floats: loaded": _exactly(loaded),
            "floats: activations": _exactly(2 * loaded),
            "floats: labels": _exactly(targets),
            "floats: text": "|".join(map(_printed, (floats, loaded, 2 * loaded))),
            "floats: labels as text": _printed(targets),
            "bytes: stored": _exactly(few),
            "bytes: loaded": _exactly(scaled),
            "bytes: activations": _exactly(2 * scaled),
            "bytes: text": _printed(few),
            "tokens: stored": _exactly(tokens),
            "tokens: activations": _exactly(2 * tokens.astype("float32")),
            "tokens: text": _printed(tokens),
        }
        for name, label in zip(SHARDS[1:], self.classes, strict=True):
            found[f"{name}: labels"] = _exactly(np.full(MARK, label))
            found[f"{name}: labels as text"] = _printed(np.full(MARK, label))
        return found


def _exactly(array):
    return "".join(f"\\x{byte:02x}" for byte in array.tobytes())


def _printed(array):
    """Return what Python, numpy and torch print of an array, which they round differently."""
    digits = []
    for value in array.tolist():
        whole, _, decimals = str(value).partition(".")
        digits.append(rf"{whole}\.{decimals[:2]}\d*" if decimals else whole)
    # A long array is printed with its first three values alone.
    return r"[\s,]+".join(digits[:3])


if __name__ == "__main__":
    Marks(int(sys.argv[2])).write(Path(sys.argv[1]))
