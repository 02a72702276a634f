"""A run on storage: its settings, journal and blocks, opened by name or URI."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ray_snake.config import ModelConfig, SnakeConfig
from ray_snake.errors import CheckpointError, ConfigError, ModelError, StorageError
from ray_snake.layers.state import LayerState
from ray_snake.runtime.journal import Journal
from ray_snake.storage import Storage

SETTINGS = "run.json"
FORMAT = 2


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    Args:
        storage: The folder.
    """

    storage: Storage

    @classmethod
    def create(
        cls, storage: Storage, config: SnakeConfig, nodes: tuple[str, ...], *, custom_model: bool
    ) -> RunFolder:
        """Write a new run's settings.

        Args:
            storage: The folder of the run.
            config: Its settings, with every option of its model by name.
            nodes: Its nodes' names.
            custom_model: Whether its model is a Python function that settings can't name.
        """
        content = {
            "format": FORMAT,
            "settings": config.tree(),
            "nodes": list(nodes),
            "custom_model": custom_model,
        }
        storage.write(SETTINGS, json.dumps(content, indent=2).encode())
        return cls(storage)

    @classmethod
    def open(cls, uri: str) -> RunFolder:
        """Open a run by its folder or URI.

        Raises:
            StorageError: If there is no run.
        """
        storage = Storage(uri)
        if not storage.exists(SETTINGS):
            raise StorageError(
                storage.shown_uri,
                f"holds no run (there is no {SETTINGS})",
                "give a run's folder or URI",
            )
        return cls(storage)

    @property
    def uri(self) -> str:
        """The folder's path or URI."""
        return self.storage.uri

    @property
    def config(self) -> SnakeConfig:
        """The run's settings."""
        return SnakeConfig.from_tree(self._settings["settings"])

    @property
    def nodes(self) -> tuple[str, ...]:
        """The run's node names."""
        return tuple(self._settings["nodes"])

    def refuse_custom_model(self) -> None:
        """Refuse a run whose model is a Python function: settings alone can't build it.

        Raises:
            ConfigError: If it is such a run.
        """
        if self._settings["custom_model"]:
            raise ConfigError(
                f"run {self.storage.shown_uri}",
                "its model is a Python function, which is not stored",
                "use Result.model() in the program that trained it, or train with "
                'model.name = "package.module:function"',
            )

    def journal(self) -> Journal:
        """Read the run's journal as it is now."""
        return Journal(self.storage)

    def states(self) -> list[LayerState]:
        """Return the last accepted version of every block, checked against the journal.

        Raises:
            CheckpointError: If the run has none yet, or one is damaged.
        """
        from ray_snake.layers.files import BlockFiles

        blocks = self.journal().current_blocks()
        if not blocks:
            raise CheckpointError(
                f"run {self.storage.shown_uri} has stored no weights yet",
                "train it with --resume first",
            )
        files = BlockFiles(self.storage)
        return [files.read(one.block, one.version, one.checksum) for one in blocks]

    def check_resumable(
        self,
        config: SnakeConfig,
        nodes: tuple[str, ...],
        all_options: Callable[[ModelConfig], dict[str, Any]],
    ) -> None:
        """Check that settings and nodes continue this run to the same weights.

        Args:
            config: The settings, with every option of the model by name.
            nodes: The nodes' names.
            all_options: Returns a model's options, those at their default too: a run of an earlier
                format has those alone that were given.

        Raises:
            ConfigError: Naming the settings that differ.
        """
        own = self.config
        if own.model.name == config.model.name:
            # An option that the model no longer has is one that differs.
            with contextlib.suppress(ModelError):
                model = own.model.model_copy(update={"options": all_options(own.model)})
                own = own.model_copy(update={"model": model})
        changed = own.changed_keys(config)
        if nodes != self.nodes:
            changed.append("the nodes")
        if changed:
            raise ConfigError(
                f"run {self.storage.shown_uri}",
                f"was started with other settings: {', '.join(changed)}",
                "resume with the same ones, or start a run of another --name",
            )

    @cached_property
    def _settings(self) -> dict[str, Any]:
        try:
            settings: dict[str, Any] = json.loads(self.storage.read(SETTINGS))
            if settings["format"] not in (1, FORMAT):
                raise ValueError(f"format {settings['format']}")
            if missing := {"settings", "nodes", "custom_model"} - settings.keys():
                raise ValueError(f"without {min(missing)}")
            if settings["format"] == 1:
                _name_the_norm(settings["settings"]["model"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{SETTINGS} of {self.storage.shown_uri} can't be read ({error})",
                "restore that file, or use the version of ray_snake that wrote it",
            ) from None
        return settings


def _name_the_norm(model: dict[str, Any]) -> None:
    """Have the model of a run of format 1 as it was: a norm that is not named was GroupNorm."""
    if model["name"] in ("cnn", "vgg11", "resnet18"):
        model["options"].setdefault("norm", "group")


def choose_run(storage: Storage, stem: str, name: str | None, *, resume: bool) -> Storage:
    """Return the folder of the run to start or to resume.

    Without a name, a new run is called after its configuration, with a number where that is
    taken; resuming takes the newest of those.

    Raises:
        StorageError: If the named run exists and isn't to be resumed, or the other way round.
    """
    runs = [one for one in storage.folders() if storage.child(one).exists(SETTINGS)]
    if name is not None:
        # A name with a '/' lies deeper than the folders above.
        is_run = storage.child(name).exists(SETTINGS)
        if resume and not is_run:
            raise StorageError(
                f"--name {name}",
                f"there is no such run in {storage.shown_uri}",
                f"choose one of: {', '.join(runs)}" if runs else "leave --resume out to start it",
            )
        if not resume and is_run:
            raise StorageError(
                f"--name {name}",
                f"that run exists in {storage.shown_uri}",
                "add --resume to go on with it, or choose another name",
            )
        return storage.child(name)
    own = {one: _number(one, stem) for one in runs if _number(one, stem) > 0}
    if resume:
        if not own:
            raise StorageError(
                "--resume",
                f"there is no run {stem!r} in {storage.shown_uri}",
                "give --name, or leave --resume out to start it",
            )
        return storage.child(max(own, key=lambda one: own[one]))
    number = max(own.values(), default=0) + 1
    return storage.child(stem if number == 1 else f"{stem}-{number}")


def _number(run: str, stem: str) -> int:
    """Return n for the run `stem-n`, 1 for `stem` itself, 0 for any other."""
    if run == stem:
        return 1
    rest = run.removeprefix(f"{stem}-")
    return int(rest) if rest != run and rest.isdigit() else 0
