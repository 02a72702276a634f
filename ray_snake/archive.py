"""Archives of package registries: pinned, downloaded by the registry's own client, kept in a cache.

A configured mirror or proxy is used that way, and the cache lies outside the project.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from ray_snake.errors import DataError

DOWNLOAD_SECONDS = 1800.0
HASHED_BYTES = 2**20

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A package's archive, pinned.

    Attributes:
        client: The registry's client.
        package: The package's name.
        version: Its version.
        file: The archive's file name.
        sha256: Of the archive, hexadecimal.
        megabytes: Its size in 10**6 bytes.
        form: Of a package of Python: its source, or a wheel.
    """

    client: Literal["npm", "pip"]
    package: str
    version: str
    file: str
    sha256: str
    megabytes: float
    form: Literal["source", "wheel"] = "source"

    @property
    def command(self) -> str:
        """What a person would type to get it."""
        if self.client == "npm":
            return f"npm pack {self.package}@{self.version}"
        options = " ".join(self.pip_options)
        return f"pip download {options} {self.package}=={self.version}"

    @property
    def pip_options(self) -> list[str]:
        """What makes `pip download` take this archive and no other."""
        excluded = "--no-binary" if self.form == "source" else "--only-binary"
        return ["--no-deps", excluded, ":all:"]


def cache_folder() -> Path:
    """Return where archives are kept.

    `RAY_SNAKE_CACHE` if it is set, else the platform's cache folder, which honours
    `XDG_CACHE_HOME`.
    """
    chosen = os.environ.get("RAY_SNAKE_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("ray_snake"))


def cached_archive(archive: Archive, report: Report) -> Path:
    """Return an archive from the cache, downloaded first if need be, and checked.

    Raises:
        DataError: If it can't be downloaded, or its SHA-256 is not the pinned one.
    """
    path = cache_folder() / archive.file
    if path.is_file():
        if _sha256(path) == archive.sha256:
            return path
        report(f"{path} is not the pinned archive any more; downloading it again")
    report(f"downloading {archive.package} {archive.version}, {archive.megabytes:g} MB")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the cache itself, so that the rename to its place stays within one file system.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder:
            _download(archive, Path(folder))
            found = Path(folder) / archive.file
            if not found.is_file():
                raise _missing(archive, "the client downloaded nothing of that name")
            checksum = _sha256(found)
            if checksum != archive.sha256:
                raise _missing(
                    archive, f"has SHA-256 {checksum} instead of the pinned {archive.sha256}"
                )
            found.replace(path)
    except OSError as error:
        raise DataError(
            str(path.parent), f"can't be written ({error.strerror})", "set RAY_SNAKE_CACHE"
        ) from None
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASHED_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _missing(archive: Archive, problem: str) -> DataError:
    return DataError(
        archive.file,
        f"from {archive.client} package {archive.package} {archive.version}: {problem}",
        f"run `{archive.command}` where that works and give its file with --from",
    )


def _download(archive: Archive, folder: Path) -> None:
    if archive.client == "pip":
        options = [*archive.pip_options, "--disable-pip-version-check", "--quiet"]
        package = f"{archive.package}=={archive.version}"
        command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), package]
        _run(archive, command, folder)
        return
    npm = shutil.which("npm")
    if npm is None:
        _download_without_npm(archive, folder)
        return
    package = f"{archive.package}@{archive.version}"
    _run(archive, [npm, "pack", "--silent", "--ignore-scripts", package], folder)


def _run(archive: Archive, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _missing(archive, f"no download within {DOWNLOAD_SECONDS:g} seconds") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise _missing(archive, f"{archive.client} failed with status {done.returncode} ({last})")


def _download_without_npm(archive: Archive, folder: Path) -> None:
    registry = _npm_registry()
    if registry is None:
        raise _missing(archive, "npm is not installed and no npm registry is configured")
    address = f"{registry.rstrip('/')}/{archive.package}/-/{archive.file}"
    if not address.startswith("https://"):
        raise _missing(archive, "npm is not installed, and the configured registry is not HTTPS")
    try:
        with (
            urllib.request.urlopen(address, timeout=60) as answer,
            (folder / archive.file).open("wb") as file,
        ):
            shutil.copyfileobj(answer, file)
    except (urllib.error.URLError, TimeoutError) as error:
        raise _missing(archive, f"could not be downloaded ({error})") from None


def _npm_registry() -> str | None:
    """Return the registry of npm's standard configuration: environment, then the user's file."""
    for key, value in os.environ.items():
        if key.lower() == "npm_config_registry" and value:
            return value
    settings = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    if settings.is_file():
        for line in settings.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "registry" and value.strip():
                return value.strip()
    return None
