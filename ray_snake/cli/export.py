"""`ray-snake export`: a run's weights as one file for other programs."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ray_snake.errors import StorageError


@click.command()
@click.argument("run")
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "torch"]),
    default="safetensors",
    show_default=True,
    help="safetensors, or a state dict for torch.load.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
def export(run: str, form: str, out: Path) -> None:
    """Write the weights of RUN, a run's folder or URI, under the network's own names."""
    if not out.parent.is_dir() or out.is_dir():
        raise StorageError(
            f"--out {out}", "is no file in a folder that exists", "give the path of a new file"
        )

    from ray_snake.runtime.recipe import Recipe
    from ray_snake.runtime.run_folder import RunFolder
    from ray_snake.trainer import load_model

    folder = RunFolder.open(run)
    folder.refuse_custom_model()
    weights = load_model(folder, Recipe(config=folder.config)).state_dict()
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if form == "torch":
            import torch

            torch.save(weights, unfinished)
        else:
            from safetensors.torch import save_file

            # Weights that are tied are written once for each of their names.
            save_file({name: one.clone() for name, one in weights.items()}, unfinished)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    click.echo(f"wrote {out}", err=True)
