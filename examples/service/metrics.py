"""``/metrics``: counts of a service in Prometheus's text format. No label names a stream."""

from __future__ import annotations

from typing import Any

import fastlstm as fl


def text(service: Any) -> str:
    """All metrics of one process."""
    streams, batcher = service.streams.stats(), service.batcher.stats()
    lines: list[str] = []

    def metric(name: str, kind: str, what: str, values: dict[str, float]) -> None:
        lines.append(f"# HELP fastlstm_{name} {what}")
        lines.append(f"# TYPE fastlstm_{name} {kind}")
        lines.extend(f"fastlstm_{name}{labels} {value}" for labels, value in values.items())

    metric("streams", "gauge", "Open streams.", {"": streams["streams"]})
    metric("streams_opened_total", "counter", "Streams opened.", {"": streams["opened"]})
    closed = {f'{{reason="{reason}"}}': count for reason, count in service.closed.items()}
    metric("streams_closed_total", "counter", "Streams closed, by reason.", closed)
    metric("restores_total", "counter", "States from the store, by result.",
           {f'{{result="{result}"}}': count for result, count in service.restores.items()})  # fmt: skip
    metric("steps_total", "counter", "Rows computed.", {"": streams["rows"] + service.pieces.rows})
    metric("batches_total", "counter", "Batches of single rows, by the reason why they began.",
           {f'{{why="{why}"}}': count for why, count in batcher["batches"].items()})  # fmt: skip
    below, buckets = 0, {}
    for size, count in batcher["sizes"].items():
        below += count
        buckets[f'_bucket{{le="{size}"}}'] = below
    buckets |= {'_bucket{le="+Inf"}': below, "_count": below, "_sum": batcher["rows"]}
    metric("batch_rows", "histogram", "Rows of a batch.", buckets)
    metric("compute_seconds_total", "counter", "Seconds in batches.", {"": batcher["compute_seconds"]})
    metric("queue_seconds_total", "counter", "Seconds that the first rows of batches waited.",
           {"": batcher["queue_seconds"]})  # fmt: skip
    metric("queue_rows", "gauge", "Rows that wait.", {"": batcher["waiting"]})
    metric("rejected_total", "counter", "Requests turned away, by reason.",
           {f'{{reason="{reason}"}}': count for reason, count in
            (("queue", batcher["rejected"]), ("full", service.refused["full"]), ("drain", service.refused["drain"]),
             ("key", service.refused["key"]))})  # fmt: skip
    metric("state_bytes", "gauge", "Bytes of all states.", {"": streams["memory_bytes"]})
    info = f'{{version="{fl.__version__}",weights="{service.streams.weights_id.hex()}"}}'
    metric("build_info", "gauge", "Version and weights.", {info: 1})
    return "\n".join(lines) + "\n"
