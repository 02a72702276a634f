"""Requests to a run that goes on: small files in its folder, which command and driver share.

A request is `requests/ID.json`, its answer `answers/ID.json`; neither side needs to reach the
other. Ids sort by the time at which they were made.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ray_snake.errors import ConfigError, InputError, SnakeError, StorageError
from ray_snake.storage import Storage

REQUESTS = "requests"
ANSWERS = "answers"


class Message(BaseModel):
    """What a file holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class AddRequest(Message):
    """Let a node join.

    Attributes:
        uri: Its shard: an absolute path or a URI.
        name: What it is to be called; none: after its shard.
    """

    kind: Literal["add"] = "add"
    uri: str
    name: str | None = None


class RemoveRequest(Message):
    """Let a node go.

    Attributes:
        node: Its number.
        name: Its name.
    """

    kind: Literal["remove"] = "remove"
    node: int
    name: str


class Answer(Message):
    """What became of a request.

    Attributes:
        subject: Of a refusal: what is wrong; empty if it was done.
        problem: Likewise: what is wrong with it.
        remedy: Likewise: what to do about it.
        node: The number of the node that joined or left.
        name: Its name.
        visit: The last decided visit before it did.
    """

    subject: str = ""
    problem: str = ""
    remedy: str = ""
    node: int | None = None
    name: str = ""
    visit: int | None = None

    @classmethod
    def refusal(cls, error: SnakeError) -> Answer:
        """Return the answer that gives an error."""
        if isinstance(error, InputError):
            return cls(subject=error.subject, problem=error.problem, remedy=error.remedy)
        problem, *remedy = (str(one) for one in error.args)
        return cls(subject="nodes", problem=problem, remedy="; ".join(remedy))

    def raise_refusal(self) -> None:
        """Raise what the request was refused for.

        Raises:
            ConfigError: If it was.
        """
        if self.subject:
            raise ConfigError(self.subject, self.problem, self.remedy)


Request = AddRequest | RemoveRequest
Content = TypeVar("Content")
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])
_ANSWER = TypeAdapter(Answer)


class Mailbox:
    """The requests of one run and their answers.

    Args:
        storage: The run's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def post(self, request: Request) -> str:
        """Leave a request; return its id."""
        key = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        self._storage.write(f"{REQUESTS}/{key}.json", request.model_dump_json().encode())
        return key

    def waiting(self) -> dict[str, Request]:
        """Return the requests that have no answer yet, by id, as they were made.

        What is no request, such as one of another version of ray_snake, is left alone.
        """
        found: dict[str, Request] = {}
        for name in self._storage.list(REQUESTS):
            with contextlib.suppress(ValidationError):
                content = self._read(f"{REQUESTS}/{name}", _REQUEST.validate_json)
                if content is not None:
                    found[name.removesuffix(".json")] = content
        return found

    def answer(self, key: str, answer: Answer) -> None:
        """Answer a request; it waits no more."""
        self._storage.write(f"{ANSWERS}/{key}.json", answer.model_dump_json().encode())
        self._storage.delete(f"{REQUESTS}/{key}.json")

    def take_answer(self, key: str) -> Answer | None:
        """Return the answer to a request, and clear it away; none if there is none yet."""
        name = f"{ANSWERS}/{key}.json"
        found = self._read(name, _ANSWER.validate_json)
        if found is not None:
            self._storage.delete(name)
        return found

    def _read(self, name: str, parse: Callable[[bytes], Content]) -> Content | None:
        if not self._storage.exists(name):
            return None
        try:
            return parse(self._storage.read(name))
        except StorageError:
            # Taken back or answered in between.
            if self._storage.exists(name):
                raise
            return None
