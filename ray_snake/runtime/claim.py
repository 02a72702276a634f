"""Which driver may write to a run: the one that took it up last.

Two drivers on one run would write over each other's journal. It happens: a run is resumed that
still goes on elsewhere, or a machine that seemed lost comes back. So a driver leaves its mark in
the run's folder, and looks whether it still is there before it writes: a fencing token as in
Kleppmann, "How to do distributed locking" (2016). Stores that know no conditional writes leave a
gap between look and write, of milliseconds.
"""

from __future__ import annotations

import secrets
import socket
import time

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_snake.errors import StorageError, TakenOverError
from ray_snake.storage import Storage

FILE = "driver.json"


class Mark(BaseModel):
    """What the file holds.

    Attributes:
        token: The driver's own, hexadecimal.
        host: Its machine's name.
        since: Unix time at which it took the run up.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    token: str
    host: str
    since: float


class Claim:
    """One driver's right to write to a run.

    Args:
        storage: The run's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._token = ""

    def take(self) -> None:
        """Take the run up, from whoever had it; a second time only see that it is still ours.

        Raises:
            StorageError: If the storage refuses it.
            TakenOverError: If another driver has taken it since.
        """
        if self._token:
            self.check()
            return
        mark = Mark(token=secrets.token_hex(16), host=socket.gethostname(), since=time.time())
        self.storage.write(FILE, mark.model_dump_json().encode())
        self._token = mark.token

    def check(self) -> None:
        """See that no other driver has taken the run.

        Raises:
            StorageError: If the storage can't be read.
            TakenOverError: If one has.
        """
        found = self._found()
        if found is not None and found.token != self._token:
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.since))
            raise TakenOverError(
                f"run {self.storage.shown_uri} was taken over by a driver on {found.host} at "
                f"{since}; nothing was written since",
                "leave it to that one, or end it and --resume here",
            )

    def _found(self) -> Mark | None:
        """Return what is there; none if nothing is, or what no driver has written."""
        try:
            return Mark.model_validate_json(self.storage.read(FILE))
        except ValidationError:
            return None
        except StorageError:
            if self.storage.exists(FILE):
                raise
            return None
