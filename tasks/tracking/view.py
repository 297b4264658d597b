"""The view of MLflow's page that our links open: a study's cells side by side, first what people ask first.

MLflow keeps a shared view as a tag of the experiment, which a link names by its key (3.17: `viewStateShareKey`): which
runs, which columns of their table, which charts in which sections. All other metrics follow in sections of their own.
Without the link MLflow's list of experiments opens a page for traces of language models, which is empty here, and its
table of runs shows no number. Which page opens is kept by the browser alone: no tag of the experiment decides it.
"""
import base64
import json
import zlib

from tasks.opd.evaluation import final

NOTE = "mlflow.note.content"            # a tag: the description of a run or an experiment, in Markdown
TAG = "mlflow.sharedViewState."         # then the key; a tag of the experiment
MOST_RUNS = 500                         # that a chart draws
TOKENS, SECONDS = "round/trained_tokens", "round/seconds"   # beside the round, what a curve may be drawn over
YARDSTICK = "reverse_kl_mean_nats"      # of distillation itself: the divergence to the teacher
TRAINING = ("train/loss_nats", "train/grad_norm", "grade/reward_mean", "rollout/length_mean_tokens",
            "rollout/truncated_share")
COLUMNS = (*(f"tags.`{name}`" for name in ("variant", "seed")), *(f"params.`{name}`" for name in (
    "slot.divergence", "slot.advantage", "slot.estimator", "slot.weights", "slot.support", "train.learning_rate")))
REWARD = final.NAMES[0]
CURRENCIES = tuple(f"{final.PREFIX}{name}" for name in final.SPENT)


def link(base: str, experiment: str, key: str) -> str:
    """The address of an experiment's charts in the view of that key."""
    return f"{base}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART" \
           f"&viewStateShareKey={key}"


def share(client, experiment: str, key: str, text: str) -> None:
    """Keep a view, `encoded`, under a key, and have the experiment's description lead to it."""
    client.set_experiment_tag(experiment, f"{TAG}{key}", text)
    charts = f"[charts of the latest runs, side by side]({link('', experiment, key)})"
    client.set_experiment_tag(experiment, NOTE, f"Choose `Model training` at the top left, or {charts}")


def encoded(state: dict) -> str:
    """A view as the tag holds it; a tag may have 20,000 characters (5,000 in older servers)."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


def state_of(benchmarks: list[str], runs: list[str] | None) -> dict:
    """The view of these runs (None: all of the experiment), the best on the first benchmark first."""
    scores = [f"eval/{name}/avg" for name in benchmarks]
    sections = {"Benchmarks": [card for name in benchmarks for card in benchmark_cards(name)],
                "Reward against cost": [scatter(currency, REWARD) for currency in CURRENCIES],
                "Training": [line(metric) for metric in TRAINING]}
    columns = [*(f"metrics.`{name}`" for name in final.NAMES), *COLUMNS, *(f"metrics.`{score}`" for score in scores)]
    listed = ",".join(f"'{run}'" for run in runs or ())
    return {
        "searchFilter": "" if runs is None else f"attributes.run_id IN ({listed})",
        "orderByKey": f"metrics.`{scores[0]}`" if scores else "attributes.start_time", "orderByAsc": False,
        "selectedColumns": columns, "columnOrder": columns, "runsHiddenMode": "SHOW_ALL", "hideEmptyCharts": True,
        "isAccordionReordered": True,   # or MLflow sorts the sections by name
        "compareRunSections": [{"uuid": f"opd-{name}", "name": name, "display": True, "isReordered": True}
                               for name in sections],
        "compareRunCharts": [{**card, "uuid": f"opd-{name}-{number}", "metricSectionId": f"opd-{name}"}
                             for name, cards in sections.items() for number, card in enumerate(cards)]}


def benchmark_cards(name: str) -> list[dict]:
    """A benchmark's mean reward over rounds, tokens and seconds, and at the end; the divergence to the teacher."""
    score = f"eval/{name}/avg"
    return [line(score), line(score, over=TOKENS), line(score, over=SECONDS), bar(score),
            line(f"eval/{name}/{YARDSTICK}")]


def line(metric: str, over: str = "") -> dict:
    """A chart of a metric over rounds, or over another metric that is logged at the same rounds."""
    return {"type": "LINE", "metricKey": metric, "selectedMetricKeys": [metric],
            "xAxisKey": "metric" if over else "step", "selectedXAxisMetricKey": over, "useGlobalXaxisKey": not over,
            "useGlobalLineSmoothing": True, "lineSmoothness": 0, "scaleType": "linear", "xAxisScaleType": "linear",
            "range": {}, "yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False,
            "runsCountToCompare": MOST_RUNS, "deleted": False, "isGenerated": False}


def bar(metric: str) -> dict:
    """A chart of a metric's last value."""
    return {"type": "BAR", "metricKey": metric, "selectedMetricKeys": [metric], "runsCountToCompare": MOST_RUNS,
            "deleted": False, "isGenerated": False}


def scatter(across: str, up: str) -> dict:
    """A chart of the last values of two metrics, a dot a run."""
    return {"type": "SCATTER", "xaxis": {"key": across, "type": "METRIC"}, "yaxis": {"key": up, "type": "METRIC"},
            "runsCountToCompare": MOST_RUNS, "deleted": False, "isGenerated": False}
