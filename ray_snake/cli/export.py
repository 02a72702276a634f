"""`ray-snake export`: a run's weights for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from ray_snake.aside import written_aside
from ray_snake.cli.options import LocalPath, check_new
from ray_snake.errors import ConfigError


@click.command()
@click.argument("run")
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "torch", "hf"]),
    default="safetensors",
    show_default=True,
    help="safetensors, a state dict for torch.load, or a folder for transformers.",
)
@click.option(
    "--out",
    type=LocalPath(),
    required=True,
    help="File to write or replace, or new folder.",
)
def export(run: str, form: str, out: Path) -> None:
    """Write the weights of RUN, a run's folder or URI, under the network's own names."""
    check_new("--out", out, "folder" if form == "hf" else "file")

    from ray_snake.runtime.recipe import Recipe
    from ray_snake.runtime.run_folder import RunFolder
    from ray_snake.trainer import load_model

    folder = RunFolder.open(run)
    folder.refuse_custom_model()
    model = load_model(folder, Recipe(config=folder.config))
    if form == "hf":
        from ray_snake.models.huggingface import TransformerBlocks

        if not isinstance(model, TransformerBlocks):
            raise ConfigError(
                "--format hf",
                f"the run's model is {folder.config.model.name!r}, none of transformers",
                "choose safetensors or torch",
            )
        with written_aside(out) as unfinished:
            model.save_pretrained(unfinished)
    elif form == "torch":
        import torch

        with written_aside(out) as unfinished:
            torch.save(model.state_dict(), unfinished)
    else:
        from safetensors.torch import save_file

        # Weights that are tied are written once for each of their names.
        weights = {name: one.clone() for name, one in model.state_dict().items()}
        with written_aside(out) as unfinished:
            save_file(weights, unfinished)
    click.echo(f"wrote {out}", err=True)
