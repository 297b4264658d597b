"""What a gate looks at, read from artifacts: answers of champion and candidate, prompts trained on, folders."""
import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tasks.opd.core.records import Prompt, Sample, read_rows
from tasks.opd.data.contamination import contaminated
from tasks.opd.data.fields import all_said
from tasks.opd.evaluation.benchmarks import pass_at
from tasks.opd.refresh import models
from tasks.opd.refresh.rows import Row
from tasks.opd.store.artifacts import Artifact, read_record

TOKENIZER = ("tokenizer.json", "chat_template.jinja")  # what makes ids of a text
TEMPLATE = "chat_template"              # in tokenizer_config.json, where there is no file of its own
ASKED_BY = ("benchmark", "sampling", "engine", "seed", "template_sha256")  # of a report: how answers came to be


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """One model's answers on one benchmark."""
    rewards: dict[str, float]           # mean by prompt
    pass_at: dict[int, dict[str, float]]  # by k above 1, by prompt
    counts: dict                        # the report's: lengths, truncation, divergence
    asked: dict                         # which prompts, how they were asked
    model_digest: str                   # of the model that answered
    place: str                          # of the report: the evidence


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything that a gate decides over."""
    champion: dict[str, Answers]        # by benchmark
    candidate: dict[str, Answers]
    champion_tokenizer: dict[str, str]  # file -> hash
    candidate_tokenizer: dict[str, str]
    contaminated: dict[str, str]        # id of a row trained on -> the question it shares words with
    checkpoint_digest: str
    differing: list[str]                # files of the model to be served that are not the checkpoint's
    place: str                          # of the rows trained on


def answers_of(report: Artifact) -> Answers:
    """The answers of a report; `report` has the counts of its divergence too, where that was measured."""
    told, record = json.loads((report.path / "report.json").read_text(encoding="utf-8")), read_record(report.path)
    rewards = defaultdict(list)
    for sample in read_rows(report.path / "samples.parquet", Sample):
        rewards[sample.prompt_id].append(sample.reward)
    ks = [k for k in told["benchmark"]["pass_at"] if k > 1]
    return Answers(rewards=told["mean_reward"], counts=report.counts, place=str(report.path),
                   pass_at={k: {prompt: pass_at(len(r), sum(x >= 1 for x in r), k) for prompt, r in rewards.items()}
                            for k in ks},
                   asked={"prompts": record["inputs"]["prompts"]["digest"], **{key: told[key] for key in ASKED_BY}},
                   model_digest=record["inputs"]["student"]["digest"])


def questions_of(report: Artifact) -> list[str]:
    """The questions of the benchmark that a report answers."""
    prompts = Artifact.from_json(read_record(report.path)["inputs"]["prompts"])
    return [all_said(prompt.turns, prompt.text) for prompt in read_rows(prompts.path / "prompts.parquet", Prompt)]


def tokenizer_of(folder: Path) -> dict[str, str]:
    """Hashes of what a model folder's tokenizer and chat template are, whichever file has the template."""
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
             for name in TOKENIZER if (folder / name).is_file()}
    config = folder / "tokenizer_config.json"
    template = json.loads(config.read_text(encoding="utf-8")).get(TEMPLATE) if config.is_file() else None
    if template is not None:
        found[TOKENIZER[1]] = hashlib.sha256(json.dumps(template).encode()
                                             if not isinstance(template, str) else template.encode()).hexdigest()
    return found


def gathered(*, start: dict[str, Artifact], end: dict[str, Artifact], champion: Path, checkpoint: Artifact, kept: Path,
             rows: dict[str, Row], frozen: set[str], ngram: int, place: Path) -> Evidence:
    """What a gate looks at: `start` and `end` are champion's and candidate's reports, `frozen` the recipe's benchmarks.

    `champion` is the champion's model folder, `kept` the candidate's as it will be served.
    """
    questions = [question for name in sorted(frozen) for question in questions_of(end[name])]
    said = {row_id: all_said(row.history, row.text) for row_id, row in rows.items()}
    return Evidence(
        champion={name: answers_of(report) for name, report in start.items()},
        candidate={name: answers_of(report) for name, report in end.items()},
        champion_tokenizer=tokenizer_of(champion), candidate_tokenizer=tokenizer_of(kept),
        contaminated=contaminated(said, questions, ngram), checkpoint_digest=checkpoint.digest,
        differing=models.differing(checkpoint, kept), place=str(place))
