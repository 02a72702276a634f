"""Ray jobs: a run that a cluster does by itself, submitted, followed and stopped from anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from ray_snake.errors import ConfigError, ResourceError, RunError
from ray_snake.runtime.connection import knock

POLL_SECONDS = 0.5
STOP_SECONDS = 60.0
# What the command line begins its last line with.
ERROR_PREFIX = "ray-snake: "
EXCLUDES = ("/.git/", "/.venv/", "/runs/", "/data/", "__pycache__/")
"""What stays where it is of a working directory, unless its runtime environment says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as its cluster knows it.

    Attributes:
        id: Its submission id.
        status: `PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`.
        run: Folder or URI of its run; empty for a job of another kind.
        exit_status: Of its entry point; none before its end.
        message: What Ray says of it.
    """

    id: str
    status: str
    run: str
    exit_status: int | None
    message: str

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return JobStatus(self.status).is_terminal()


class Jobs:
    """The jobs of a cluster.

    Args:
        address: Its dashboard's address, such as `http://head:8265`.

    Raises:
        ResourceError: If no cluster answers there, or it wants a token that it was not given.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        with self._answered():
            knock(address)
            self._client = JobSubmissionClient(address)

    def submit(
        self, arguments: list[str], *, job: str, run: str, runtime_env: Mapping[str, Any], by: str
    ) -> None:
        """Submit `python -m ray_snake` with these arguments.

        Args:
            arguments: Of the command line.
            job: The job's id.
            run: Folder or URI of the run that it does.
            runtime_env: Its runtime environment.
            by: The version that submits it.
        """
        with self._answered():
            self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "ray_snake", *arguments]),
                submission_id=job,
                runtime_env=dict(runtime_env),
                metadata={"ray_snake_run": run, "ray_snake_version": by},
            )

    def job(self, job: str) -> Job:
        """Return a job by its id.

        Raises:
            ConfigError: If there is none.
        """
        with self._answered():
            known = {one.submission_id: one for one in self._client.list_jobs()}
        if job not in known:
            raise ConfigError(
                f"job {job}",
                f"is not known at {self._address}",
                f"use one of: {', '.join(str(one) for one in known if one) or 'there are none'}",
            )
        found = known[job]
        return Job(
            id=job,
            status=str(found.status.value),
            run=(found.metadata or {}).get("ray_snake_run", ""),
            exit_status=found.driver_exit_code,
            message=" ".join((found.message or "").split()),
        )

    def follow(self, job: str, write: Callable[[str], None]) -> Job:
        """Pass on what a job writes until it is over; return it then."""

        async def pass_on() -> None:
            async for text in self._client.tail_job_logs(job):
                write(text)

        with self._answered():
            asyncio.run(pass_on())
        return self._ended(job, None)

    def stop(self, job: str) -> Job:
        """Stop a job, and return it once it is over.

        Raises:
            RunError: If it goes on all the same.
        """
        if not self.job(job).is_over:
            with self._answered():
                self._client.stop_job(job)
        return self._ended(job, STOP_SECONDS)

    def cause(self, job: Job) -> str:
        """Return in a line why a job failed: its own last word, else Ray's."""
        with self._answered():
            lines = self._client.get_job_logs(job.id).splitlines()
        own = [line for line in lines if line.startswith(ERROR_PREFIX)]
        return own[-1].removeprefix(ERROR_PREFIX) if own else job.message[:300]

    def _ended(self, job: str, seconds: float | None) -> Job:
        deadline = None if seconds is None else time.monotonic() + seconds
        while not (found := self.job(job)).is_over:
            if deadline is not None and time.monotonic() > deadline:
                raise RunError(f"job {job} did not stop within {seconds:g} s", "look at its logs")
            time.sleep(POLL_SECONDS)
        return found

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """Turn what Ray raises of a cluster that does not answer into one line."""
        try:
            yield
        except Exception as error:
            # Ray has no class for these: requests' errors, and RuntimeError with HTTP's status.
            reason = " ".join(str(error).split())
            if "401" in reason or "403" in reason or "token" in reason.lower():
                remedy = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
                raise ResourceError(
                    f"--address {self._address}", f"refuses this client ({reason[:200]})", remedy
                ) from None
            raise ResourceError(
                f"--address {self._address}",
                f"no dashboard of a Ray cluster answers there ({reason[:200]})",
                "give the address of a head's dashboard, such as http://head:8265",
            ) from None
