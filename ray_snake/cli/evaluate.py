"""`ray-snake evaluate`: judge a run's model on held-out rows."""

from __future__ import annotations

import json

import click

from ray_snake.cli.options import json_option
from ray_snake.errors import ConfigError


@click.command()
@click.argument("run")
@click.option("--data", metavar="FILE", help="Rows to judge on, in place of the run's own.")
@json_option
def evaluate(run: str, data: str | None, as_json: bool) -> None:
    """Judge the model of RUN, a run's folder or URI."""
    from ray_snake.runtime.run_folder import RunFolder

    folder = RunFolder.open(run)
    config = folder.config
    uri = config.evaluation.data if data is None else data
    if uri is None:
        raise ConfigError("--data", "the run has no evaluation.data", "give --data FILE")

    from ray_snake.data import NodeDataset
    from ray_snake.engine.evaluate import evaluate as judge
    from ray_snake.engine.stack import BlockStack
    from ray_snake.runtime.preflight import check_shards
    from ray_snake.runtime.recipe import Recipe
    from ray_snake.trainer import evaluation_source, load_model

    folder.refuse_custom_model()
    recipe = Recipe(config=config)
    source = evaluation_source(config, uri)
    assert source is not None
    task = recipe.objective().task
    check_shards(recipe.skeleton(), [source], task)
    found = judge(
        BlockStack.cut(load_model(folder, recipe)),
        NodeDataset.open(source),
        task=task,
        batch_size=config.evaluation.batch_size,
        precision=config.evaluation.precision or config.training.precision,
    )
    metrics = {"loss": found.loss}
    if found.accuracy is not None:
        metrics["accuracy"] = found.accuracy
    if found.perplexity is not None:
        metrics["perplexity"] = found.perplexity
    for name, value in metrics.items():
        click.echo(f"{name}: {value:.4f}", err=as_json)
    if as_json:
        click.echo(json.dumps({"run": folder.uri, "samples": found.samples, "metrics": metrics}))
