"""Writes what is derived from something else, so that nothing is said twice by hand.

    helm/consistory-ray/README.md        from values.yaml's comments and Chart.yaml
    helm/consistory-ray/files/           rules and dashboards, copied from cluster/ (a chart cannot read outside itself)
    docs/metrics.md                      from the metric table in consistory_ray/watch/metrics.py, and the alert rules

Usage: python scripts/chart_docs.py [--check]. With --check nothing is written, and the exit code says whether all is
current.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "consistory-ray"

README = """\
# consistory-ray

{description}. Version {version}, for Ray {ray} and KubeRay {kuberay}.

    helm install storybook helm/consistory-ray \\
      --set image.repository=REGISTRY/consistory-ray \\
      --set output.url=s3://BUCKET/storybook \\
      --set-file job.definition=job.yaml

[docs/kubernetes.md](../../docs/kubernetes.md) goes through it step by step; [ci/](ci) holds complete value sets: {ci}.

This file is written by `scripts/chart_docs.py`; change the comments in `values.yaml` instead.

## What is installed

| Kind | When |
|---|---|
| RayJob | `mode: job`: the Ray cluster exists while the run does |
| RayCluster, Job, ConfigMap | `mode: cluster`: a Ray cluster that stays, and a Job that submits the run |
| ConfigMap (job file) | `job.definition` |
| ServiceAccount | `serviceAccount.create` |
| NetworkPolicy (3) | `networkPolicy.enabled` |
| PodDisruptionBudget | `head.podDisruptionBudget.enabled` |
| PersistentVolumeClaim | `output.persistentVolume.enabled`, `model.cache.type: persistentVolume`; no claim given |
| PodMonitor (2), or Service and ServiceMonitor | `monitoring.podMonitor.enabled`, `monitoring.serviceMonitor.enabled` |
| PrometheusRule | `monitoring.prometheusRule.enabled` |
| ConfigMap (dashboards) | `monitoring.dashboards.enabled` |

The chart installs no Role. With autoscaling KubeRay itself binds one that lets the autoscaler's container scale its own
RayCluster.

## Values

| Key | Default | What it is |
|---|---|---|
{rows}
"""

METRICS = """\
# Metrics and logs

## Metrics

A run exports its metrics if it is given a port: by `--metrics-port`, or by `CONSISTORY_METRICS_PORT` as in the chart
and in `cluster/compose.yaml` (9464 in both). Without one nothing is counted and the Prometheus client is not imported.

| Option | Environment | Default |
|---|---|---|
| `--metrics-port` | `CONSISTORY_METRICS_PORT` | none: no metrics |
| `--metrics-host` | `CONSISTORY_METRICS_HOST` | `127.0.0.1`: this machine only |
| `--price-per-gpu-hour` | `CONSISTORY_PRICE_PER_GPU_HOUR` | none: no cost metrics |

Every metric also has the label `run`, the job's name. Workers report to the coordinator and export nothing themselves;
Ray's own metrics (`ray_…`) are left as they are. Every machine that a worker runs on, and the coordinator's own, tells
every ten seconds at most how its disk and its GPUs are doing; GPU readings need `pynvml` there (`pip install
".[nvml]"`; the CUDA image has it). A run that was scraped waits up to 35 seconds at its end for one more
scrape, so that Prometheus has its totals.

The table is written by `scripts/chart_docs.py` from `consistory_ray/watch/metrics.py`.

| Name | Type | Unit | Labels | What it is |
|---|---|---|---|---|
{rows}

Histograms have the usual `_bucket`, `_sum` and `_count`. Metrics whose labels take listed values start at 0.

How a run ended (`consistory_run_outcome`) is set just before that last scrape, and there only: whoever wants to know
later asks `consistory-ray status`, or Prometheus by `last_over_time`. A coordinator that is killed has no outcome; that
is ConsistoryCoordinatorDown.

## Alerts

The rules of `cluster/prometheus/rules.yml`, which the chart installs with `monitoring.prometheusRule.enabled`.

| Alert | Severity | Held for | Says |
|---|---|---|---|
{alerts}

## Logs

| Option | Environment | Default |
|---|---|---|
| `--log-format` | `CONSISTORY_LOG_FORMAT` | `text`; `json`: an object per line on stderr, no progress bars |
| `--log-level` | `CONSISTORY_LOG_LEVEL` | `warning`, with JSON `info` |

From `info` on every picture has its line:

    {{"time": "2026-01-01T12:00:00.000+00:00", "level": "info", "message": "images/owl/at-night.png is done",
     "logger": "consistory_ray.run", "run": "storybook", "subject": "owl", "asset": "5d41402abc4b2a76b9719d911017c592",
     "kind": "scene", "path": "images/owl/at-night.png", "seconds": 4.2, "worker": "worker-3", "attempt": 1}}

(on one line). Workers log in the same form, with `host` and `process`, into the files that Ray keeps of each worker.
Passwords in URLs, signatures of presigned URLs and SAS tokens, and access keys are replaced by `***` before a line is
written.

## Without any of it

`consistory-ray status URL --watch` follows a run from storage alone: the run record, and the parts of the index, each
of which it reads once. It says when a run's coordinator has fallen silent. It ends with the run, and its exit code is
the render's: 0, 1 (some pictures failed), 3 (it could not go on), 75 (interrupted) or 76 (stopped by `--max-cost`).
"""


def documented_values(text: str) -> Iterator[tuple[str, str, str]]:
    """Dotted key, default and description of every value whose comment starts with ``# --``."""
    values = yaml.safe_load(text)
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = [stripped[5:]]
        elif stripped.startswith("#") and comment:
            comment.append(stripped[1:].strip())
        elif match := re.match(r"( *)([A-Za-z][A-Za-z0-9]*):", line):
            indent = len(match[1])
            path = [(depth, key) for depth, key in path if depth < indent] + [(indent, match[2])]
            if comment:
                keys = [key for _, key in path]
                yield ".".join(keys), _compact(_lookup(values, keys)), " ".join(comment)
                comment = []
        elif not stripped:
            comment = []


def chart_readme() -> str:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    rows = [
        f"| `{key}` | `{default}` | {description.replace('|', chr(92) + '|')} |"
        for key, default, description in documented_values((CHART / "values.yaml").read_text())
    ]
    names = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
    return README.format(
        description=chart["description"],
        version=chart["version"],
        ray=chart["annotations"]["consistory-ray/ray"],
        kuberay=chart["annotations"]["consistory-ray/kuberay"],
        ci=", ".join(names),
        rows="\n".join(rows),
    )


def metrics_page() -> str:
    sys.path.insert(0, str(ROOT))
    from consistory_ray.watch.metrics import TABLE

    rows = []
    for metric in TABLE:
        labels = ", ".join(
            f"`{label.name}`" + (f" ({', '.join(label.values)})" if label.values else "") for label in metric.labels
        )
        rows.append(f"| `{metric.name}` | {metric.type} | {metric.unit} | {labels} | {metric.help} |")
    rules = yaml.safe_load((ROOT / "cluster" / "prometheus" / "rules.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    return METRICS.format(rows="\n".join(rows), alerts="\n".join(alert_row(rule) for rule in alerts))


def alert_row(rule: dict[str, Any]) -> str:
    """An alert as a line of the table, with what Prometheus fills in shown as its name."""
    says = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: match[1].upper(), rule["annotations"]["description"])
    says = re.sub(r"\{\{[^}]*\$value[^}]*\}\}", "N", says)
    return f"| {rule['alert']} | {rule['labels']['severity']} | {rule['for']} | {says} |"


def derived_files() -> dict[Path, str]:
    """Path and wanted content of everything this script writes."""
    files = {CHART / "README.md": chart_readme(), ROOT / "docs" / "metrics.md": metrics_page()}
    files[CHART / "files" / "rules.yml"] = (ROOT / "cluster" / "prometheus" / "rules.yml").read_text()
    for dashboard in sorted((ROOT / "cluster" / "grafana").glob("*.json")):
        files[CHART / "files" / "dashboards" / dashboard.name] = dashboard.read_text()
    return files


def _lookup(values: Any, keys: list[str]) -> Any:
    for key in keys:
        values = values[key]
    return values


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def main() -> int:
    stale = {path: text for path, text in derived_files().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(("stale: " if "--check" in sys.argv else "wrote ") + str(path.relative_to(ROOT)))
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
