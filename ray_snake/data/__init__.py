"""A node's shard of the data: opening it, splitting a data set into shards, fetching data sets.

Nothing here imports ray or torch.
"""

from ray_snake.data.dataset import NodeDataset, ShardSource
from ray_snake.data.partition import label_table, split
from ray_snake.data.shards import make_table, partition_file, read_table, write_shard

__all__ = [
    "NodeDataset",
    "ShardSource",
    "label_table",
    "make_table",
    "partition_file",
    "read_table",
    "split",
    "write_shard",
]
