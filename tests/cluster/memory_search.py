"""Looks for marked rows in the memory of processes and in files.

The search is a process of its own, so that those that are searched never hold what is looked for:
`python memory_search.py SEED`, with a JSON object of `pids` and `folders` as its input.
"""

import errno
import itertools
import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from marked_shards import Marks

PAGE = os.sysconf("SC_PAGE_SIZE")
PIECE = 2**23
OVERLAP = 256
THREADS = 2
# Pages of the kernel in every process: clocks and system calls. They can't be read this way.
KERNELS = {"[vvar]", "[vvar_vclock]", "[vsyscall]"}
PRESENT_OR_SWAPPED = np.uint64(3 << 62)
OF_A_FILE = np.uint64(1 << 61)


class Found:
    """What a search found: forms of rows, such as `floats: loaded`.

    Attributes:
        processes: By process, in its own memory or in memory that it shares; without those that
            hold nothing.
        files: By path, likewise.
        searched: How many bytes of each process were looked through.
    """

    def __init__(self, answer):
        self.processes = {int(pid): set(forms) for pid, forms in answer["processes"].items()}
        self.searched = {int(pid): count for pid, count in answer["searched"].items()}
        self.files = {Path(path): set(forms) for path, forms in answer["files"].items()}


def search(seed, pids=(), folders=()):
    """Search processes and all files of folders, in a process of its own."""
    request = {"pids": list(pids), "folders": [str(one) for one in folders]}
    done = subprocess.run(
        [sys.executable, __file__, str(seed)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Found(json.loads(done.stdout))


class Matcher:
    """Tells which patterns some bytes hold: one pass for all, since most hold none."""

    def __init__(self, patterns):
        self._patterns = patterns
        self._any = "|".join(patterns.values())

    def __call__(self, content):
        if not _holds(content, self._any):
            return set()
        return {name for name, pattern in self._patterns.items() if _holds(content, pattern)}


def _holds(content, pattern):
    # Arrow's engine goes over bytes five times as fast as Python's, and in several threads.
    offsets = pa.py_buffer(np.array([0, len(content)]))
    row = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(content)])
    return pc.match_substring_regex(row, pattern)[0].as_py()


class Mapping:
    """A line of /proc/PID/maps."""

    def __init__(self, line):
        parts = re.match(r"(\w+)-(\w+) (\S+) (\w+) (\S+) (\d+) *(.*)", line)
        self.start, self.stop = int(parts[1], 16), int(parts[2], 16)
        self.can_be_read = parts[3][0] == "r" and parts[7] not in KERNELS
        self.is_shared = parts[3][3] == "s"
        self.file = (parts[5], int(parts[6]))
        # The same for all processes that map the same part of a file.
        self.content = f"{parts[4]} {parts[5]} {parts[6]} {self.stop - self.start}"
        self.path = parts[7]

    @property
    def is_data(self):
        """Whether it is a file, but no library: those are large, and have no rows."""
        if not self.path.startswith("/"):
            return False
        try:
            with Path(self.path).open("rb") as file:
                return file.read(4) != b"\x7fELF"
        except OSError:
            return True


class Process:
    """The memory of a process: what it wrote to itself, and the files and memory it may share."""

    def __init__(self, pid, matcher):
        self._folder = Path(f"/proc/{pid}")
        self._matcher = matcher
        self.forms = set()
        self.shares = set()
        self.searched = 0

    def search(self, claim):
        """Look through it; `claim` gives a set for what no other process has looked through yet."""
        try:
            lines = (self._folder / "maps").read_text().splitlines()
            mappings = [one for one in map(Mapping, lines) if one.can_be_read]
            private = (one for one in mappings if not one.is_shared)
            pages = itertools.chain.from_iterable(map(self._own_pages, private))
            self.forms |= self._look("mem", pages)
            for mapping in mappings:
                if mapping.is_shared or mapping.is_data:
                    self._search_shared(mapping, claim)
        except (FileNotFoundError, ProcessLookupError):
            # It has ended.
            return
        except PermissionError as error:
            raise SystemExit(
                f"the memory of the cluster's processes can't be read ({error}): run the tests as "
                "root, or where processes of one user may trace each other"
            ) from None

    def _search_shared(self, mapping, claim):
        descriptor = self._descriptor(mapping) if mapping.is_shared else None
        content = mapping.content if descriptor is None else str(mapping.file)
        self.shares.add(content)
        forms = claim(content)
        if forms is None:
            return
        if descriptor is None:
            forms |= self._look("mem", [(mapping.start, mapping.stop)])
        else:
            # Most of an object store was never written to. Through memory, looking would fill it.
            forms |= self._look(descriptor, written_parts(self._folder / descriptor))

    def _descriptor(self, mapping):
        """Return the process's own descriptor of the file that it shares, if it has one."""
        for one in (self._folder / "fd").iterdir():
            try:
                found = one.stat()
            except FileNotFoundError:
                continue
            device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
            if stat.S_ISREG(found.st_mode) and (device, found.st_ino) == mapping.file:
                return f"fd/{one.name}"
        return None

    def _own_pages(self, mapping):
        """Yield ranges of what the process itself wrote to; files are as they are on disk."""
        with (self._folder / "pagemap").open("rb") as file:
            file.seek(mapping.start // PAGE * 8)
            entries = file.read((mapping.stop - mapping.start) // PAGE * 8)
        flags = np.frombuffer(entries, dtype=np.uint64)
        own = ((flags & PRESENT_OR_SWAPPED) != 0) & ((flags & OF_A_FILE) == 0)
        if not own.any():
            return
        edges = np.flatnonzero(np.diff(own.astype(np.int8), prepend=0, append=0))
        for first, last in edges.reshape(-1, 2).tolist():
            yield mapping.start + first * PAGE, mapping.start + last * PAGE

    def _look(self, name, ranges):
        """Return what is in these ranges of a file of the process, one after another."""
        forms = set()
        buffer, filled = memoryview(bytearray(PIECE)), 0
        with (self._folder / name).open("rb", buffering=0) as file:
            for start, stop in ranges:
                file.seek(start)
                while start < stop:
                    if filled == PIECE:
                        forms |= self._matcher(buffer)
                        # What is looked for may lie across the end of a piece.
                        filled = OVERLAP
                        buffer[:filled] = buffer[-filled:]
                    try:
                        count = file.readinto(buffer[filled : min(filled + stop - start, PIECE)])
                    except OSError:
                        # The process has given this memory back meanwhile.
                        break
                    if not count:
                        break
                    start += count
                    filled += count
                    self.searched += count
        return forms | self._matcher(buffer[:filled])


def written_parts(path):
    """Return ranges of a sparse file that hold something."""
    parts, at = [], 0
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        while at < size:
            start = os.lseek(file, at, os.SEEK_DATA)
            at = os.lseek(file, start, os.SEEK_HOLE)
            parts.append((start, at))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    finally:
        os.close(file)
    return parts


def regular_files(folders):
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            try:
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path, path.read_bytes()
            except FileNotFoundError:
                continue


def main(seed, pids, folders):
    matcher = Matcher(Marks(seed).patterns())
    shared = {}

    def claim(content):
        forms = set()
        return forms if shared.setdefault(content, forms) is forms else None

    processes = {pid: Process(pid, matcher) for pid in pids}
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda one: one.search(claim), processes.values()))
    for one in processes.values():
        one.forms.update(*(shared[content] for content in one.shares))
    files = {str(path): sorted(matcher(content)) for path, content in regular_files(folders)}
    return {
        "processes": {pid: sorted(one.forms) for pid, one in processes.items() if one.forms},
        "searched": {pid: one.searched for pid, one in processes.items()},
        "files": {path: forms for path, forms in files.items() if forms},
    }


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1]), **json.load(sys.stdin)), sys.stdout)
