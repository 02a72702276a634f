"""Where files lie: what a path or URI says, and the filesystem it leads to.

Credentials come from the usual places (environment, profile files, instance roles), or from the
location itself, and never appear in an error.
"""

from __future__ import annotations

import datetime
import os
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from ray_snake.errors import StorageError

CONNECT_SECONDS = 5.0
ATTEMPTS = 3

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_SECRET_KEYS = ("access_key", "secret_key", "session_token", "access_token")
_S3_KEYS = (
    "region",
    "scheme",
    "endpoint_override",
    "access_key",
    "secret_key",
    "session_token",
    "role_arn",
    "external_id",
)
_GS_KEYS = ("scheme", "endpoint_override", "anonymous", "access_token")


@dataclass(frozen=True, kw_only=True)
class Location:
    """A parsed location: `path` is what pyarrow's filesystem is asked for."""

    scheme: str
    user: str
    path: str
    options: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, uri: str) -> Location:
        """Return what a path or URI says.

        Raises:
            StorageError: If it can't be understood.
        """
        match = _SCHEME.match(uri)
        if match is None or match[1].lower() == "file":
            return cls(scheme="file", user="", path=_local_path(uri), options=())
        scheme = match[1].lower()
        if scheme not in ("s3", "gs"):
            raise StorageError(
                without_secrets(uri),
                f"storage of kind {scheme!r} is not supported",
                "use a local path, file://, s3://bucket/prefix or gs://bucket/prefix",
            )
        rest, _, query = uri[match.end() :].partition("?")
        authority, _, prefix = rest.partition("/")
        user, _, bucket = authority.rpartition("@")
        if ":" in bucket:
            raise StorageError(
                without_secrets(uri),
                "has a ':' in the bucket's name, which may be a secret key with a '/' in it",
                "write %2F for that '/', or give credentials in the environment",
            )
        path = "/".join(part for part in (bucket, *prefix.split("/")) if part)
        if not bucket:
            raise StorageError(
                without_secrets(uri), "names no bucket", f"write {scheme}://bucket/prefix"
            )
        options = tuple(urllib.parse.parse_qsl(query, keep_blank_values=True))
        known = _S3_KEYS if scheme == "s3" else _GS_KEYS
        for key, _value in options:
            if key not in known:
                raise StorageError(
                    without_secrets(uri),
                    f"unknown option {key!r} after the '?'",
                    f"known options: {', '.join(known)}",
                )
        return cls(scheme=scheme, user=user, path=path, options=options)

    @property
    def bucket(self) -> str:
        """The bucket's name; for a local path the empty text or its first part."""
        return self.path.partition("/")[0]

    def secrets(self) -> list[str]:
        """Return the texts that must not appear in a message, longest first."""
        found = [value for key, value in self.options if key in _SECRET_KEYS]
        if self.scheme == "s3":
            found += [urllib.parse.unquote(part) for part in self.user.split(":")]
        return sorted((text for text in found if text), key=len, reverse=True)

    def connect(self, timeout_seconds: float) -> fs.FileSystem:
        """Return the filesystem; its own network timeouts lie within `timeout_seconds`."""
        if self.scheme == "file":
            return fs.LocalFileSystem()
        options: dict[str, Any] = dict(self.options)
        if self.scheme == "gs":
            if "anonymous" in options or self.user == "anonymous":
                options["anonymous"] = options.get("anonymous", "true").lower() == "true"
            if "access_token" in options:
                # pyarrow wants to know until when; a run never renews what its location says.
                options["credential_token_expiration"] = datetime.datetime.now(
                    datetime.timezone.utc
                ) + datetime.timedelta(hours=1)
            limit = datetime.timedelta(seconds=timeout_seconds / 2)
            return fs.GcsFileSystem(retry_time_limit=limit, **options)
        if self.user:
            access_key, _, secret_key = self.user.partition(":")
            options["access_key"] = urllib.parse.unquote(access_key)
            options["secret_key"] = urllib.parse.unquote(secret_key)
        region = options.pop("region", None) or _region_from_environment()
        if region is None and "endpoint_override" not in options and not _endpoint_in_environment():
            region = fs.resolve_s3_region(self.bucket)
        return fs.S3FileSystem(
            region=region,
            connect_timeout=min(CONNECT_SECONDS, timeout_seconds / ATTEMPTS),
            # All attempts together fit the deadline, so that no request outlives it by much.
            request_timeout=timeout_seconds / ATTEMPTS,
            allow_delayed_open=True,  # one put for what is small, rather than three requests
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            **options,
        )


def without_secrets(uri: str) -> str:
    """Return a location as it may be shown: without the options and credentials of a URI."""
    match = _SCHEME.match(uri)
    if match is None or match[1].lower() == "file":
        return uri
    authority, slash, prefix = uri.partition("?")[0][match.end() :].partition("/")
    bucket = authority.rpartition("@")[2]
    if ":" in bucket:
        return f"{match[0]}***"
    return f"{match[0]}{bucket}{slash}{prefix}"


def _local_path(uri: str) -> str:
    match = _SCHEME.match(uri)
    if match is None:
        path = Path(uri).expanduser()
    else:
        parsed = urllib.parse.urlparse(uri)
        if parsed.netloc not in ("", "localhost"):
            raise StorageError(
                uri, f"names the host {parsed.netloc!r}", "write file:///path with three slashes"
            )
        path = Path(urllib.request.url2pathname(parsed.path))
    if not uri:
        raise StorageError("storage", "the location is empty", "give a path or a URI")
    return str(Path(os.path.abspath(path)))  # noqa: PTH100 - unlike resolve(), keeps links


def _region_from_environment() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def _endpoint_in_environment() -> bool:
    return any(name in os.environ for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
