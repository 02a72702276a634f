"""TensorBoard's HParams page: what a run's trial was given, and that it has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from ray_snake.storage import Storage
from ray_snake.telemetry.tensorboard import FOLDER, write_events

# Of the run's evaluations (`telemetry.tensorboard`).
TAGS = {"accuracy": "accuracy/test", "loss": "loss/test"}


def write_hparams(run: Storage, values: Mapping[str, Any], *, failed: bool) -> None:
    """Write a trial's values beside its run's events; a second time replaces the first.

    Args:
        run: The run's folder.
        values: By dotted key.
        failed: Whether the trial ended with an error.

    Raises:
        StorageError: If the storage refuses it.
    """
    started = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for key, value in sorted(values.items()):
        plain = value if isinstance(value, bool | int | float | str) else repr(value)
        if isinstance(plain, bool):
            started.hparams[key].bool_value = plain
        elif isinstance(plain, str):
            started.hparams[key].string_value = plain
        else:
            started.hparams[key].number_value = plain
    ended = plugin_data_pb2.SessionEndInfo(
        status=api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS,
        end_time_secs=time.time(),
    )
    experiment = api_pb2.Experiment(
        hparam_infos=[api_pb2.HParamInfo(name=key) for key in sorted(values)],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
            for name, tag in TAGS.items()
        ],
    )
    version = metadata.PLUGIN_DATA_VERSION
    parts = {
        metadata.EXPERIMENT_TAG: plugin_data_pb2.HParamsPluginData(
            version=version, experiment=experiment
        ),
        metadata.SESSION_START_INFO_TAG: plugin_data_pb2.HParamsPluginData(
            version=version, session_start_info=started
        ),
        metadata.SESSION_END_INFO_TAG: plugin_data_pb2.HParamsPluginData(
            version=version, session_end_info=ended
        ),
    }
    values_of = [
        summary_pb2.Summary.Value(
            tag=tag,
            metadata=summary_pb2.SummaryMetadata(
                plugin_data=summary_pb2.SummaryMetadata.PluginData(
                    plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
                )
            ),
        )
        for tag, data in parts.items()
    ]
    event = event_pb2.Event(wall_time=time.time(), summary=summary_pb2.Summary(value=values_of))
    write_events(run, f"{FOLDER}/events.out.tfevents.00000000.hparams", [event])
