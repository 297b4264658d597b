"""Who writes completions, and the stage that has them written.

`writer(prompts, seeds, engines, *, ..) -> drafts`: one draft (or None) for each prompt, a function of its seed; a
prompt that gets n completions stands n times. Fractions are exact shares of a round's prompts, dealt by hash.
"""
import functools
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tasks.opd.core.costs import READ, WRITTEN, counted
from tasks.opd.core.entries import Entry
from tasks.opd.core.errors import DataError, NonFinite
from tasks.opd.core.records import (
    DATASET,
    STUDENT,
    TEACHER,
    Prompt,
    Quarantined,
    Rollout,
    read_rows,
    source_of,
    write_rows,
)
from tasks.opd.core.seeds import derive_seed
from tasks.opd.rollouts.limits import written_within
from tasks.opd.store.artifacts import fingerprint_of, model_folder

AUTHORS = {"student": STUDENT, "teacher": TEACHER}


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A completion before it is a rollout."""
    token_ids: list[int]        # [T]
    logprobs: list[float]       # [T] nats, of the distribution sampled from; NaN where there is none
    author: list[int]           # [T]
    finish_reason: str
    policy: list[str]           # [T] fingerprint of the model that wrote the token; "" for a dataset


class Engines:
    """The models a stage may use, started when first asked for, and the distribution completions are drawn from."""

    def __init__(self, inputs: dict[str, Path], spec: dict, session):
        self.inputs, self.spec, self.session = inputs, spec, session
        self.sampling = spec.get("sampling")
        self.report: dict[str, float | None] = {}  # what a refiner tells of its work: counts and metrics
        self.most: dict = {}                       # what a budget leaves: {tokens, of: names of costs}; empty: no limit
        self.costs: Counter = Counter()            # tokens that the stage has spent, see `core.costs`

    @functools.cached_property
    def student(self):
        """The student's engine."""
        return self.engine("student")

    @functools.cached_property
    def teacher(self):
        """The teacher's engine. Raises DataError when the stage was given no teacher."""
        return self.engine("teacher")

    def engine(self, name: str, /, **changed):
        """The engine of `student` or `teacher`, with other settings than the stage's where `changed` says so."""
        if name not in self.inputs:
            raise DataError(f"the {name} is asked for, but the stage was given none; give it the input `{name}`")
        path, settings = self.inputs[name], {**self.spec["engine"], **changed}
        if name == "student":
            return self.session.engine("student", model_folder(path), settings)
        return self.session.engine(teacher_role(path), model_folder(path, self.spec.get("folder", "model")), settings)

    @functools.cached_property
    def tokenizer(self):
        """The student's tokenizer."""
        from transformers import AutoTokenizer
        return AutoTokenizer.from_pretrained(model_folder(self.inputs["student"]), local_files_only=True)


def teacher_role(path: Path) -> str:
    """The role under which a teacher's engine is kept: one a fixed model, one for all checkpoints (loaded in place)."""
    return f"teacher:{fingerprint_of(path) if path.parent.name == 'model' else path.parent.name}"


def drafts_of(engines: Engines, name: str, prompts: list[Prompt], seeds: list[int], sampling: dict) -> list[Draft]:
    """Have the student or the teacher continue prompts."""
    engine, author, policy = getattr(engines, name), AUTHORS[name], fingerprint_of(engines.inputs[name])
    with engines.session.progress(len(prompts), f"{name} writes", "rollouts") as bar:
        written = engine.generate([p.token_ids for p in prompts], sampling, seeds, progress=bar)
    engines.costs[WRITTEN[author]] += sum(len(c.token_ids) for c in written)
    return [Draft(token_ids=c.token_ids, logprobs=c.logprobs, author=[author] * len(c.token_ids),
                  finish_reason=c.finish_reason, policy=[policy] * len(c.token_ids)) for c in written]


def student(prompts: list[Prompt], seeds: list[int], engines: Engines, *,
            tokens: Annotated[int, Field(ge=1)] | None = None,
            share: Annotated[float, Field(gt=0, le=1)] | None = None) -> list[Draft | None]:
    """The student, under the recipe's sampling; it stops after `tokens`, or after a share of the recipe's limit."""
    limit = engines.sampling["max_new_tokens"]
    limit = min(limit, tokens or limit, max(1, round(limit * (share or 1.0))))
    return drafts_of(engines, "student", prompts, seeds, {**engines.sampling, "max_new_tokens": limit})


def teacher(prompts: list[Prompt], seeds: list[int], engines: Engines, *,
            temperature: Annotated[float, Field(ge=0, le=10)] = 1.0) -> list[Draft | None]:
    """The teacher, at its own temperature, from the same prompts; top_p, top_k and the limit are the recipe's."""
    sampling = {**engines.sampling, "temperature": temperature}
    return drafts_of(engines, "teacher", prompts, seeds, sampling)


def dataset(prompts: list[Prompt], seeds: list[int], engines: Engines) -> list[Draft | None]:
    """The source's worked solutions with the tokenizer's EOS; None where there is none. Only the context limits them.

    Raises: DataError when the tokenizer has no EOS, without which the student would never learn to stop.
    """
    tokenizer, drafts = engines.tokenizer, []
    if tokenizer.eos_token_id is None:
        raise DataError("the student's tokenizer has no eos_token; writer dataset needs one to end solutions with")
    for prompt in prompts:
        ids = tokenizer.encode(prompt.solution, add_special_tokens=False) if prompt.solution else []
        ends = json.loads(prompt.entry).get("ends", True)  # a window of a longer text does not end
        drafts.append(copied([*ids, tokenizer.eos_token_id] if ends else ids, ends) if ids else None)
    engines.costs[WRITTEN[DATASET]] += sum(len(draft.token_ids) for draft in drafts if draft)
    return drafts


def copied(ids: list[int], ends: bool) -> Draft:
    """A completion that the dataset wrote."""
    return Draft(token_ids=ids, logprobs=[math.nan] * len(ids), author=[DATASET] * len(ids),
                 policy=[""] * len(ids), finish_reason="stop" if ends else "length")


def mixture(prompts: list[Prompt], seeds: list[int], engines: Engines, *,
            teacher_share: Annotated[float, Field(gt=0, lt=1)] = 0.2,
            temperature: Annotated[float, Field(gt=0, le=10)] = 1.0) -> list[Draft | None]:
    """Every token from teacher_share p + (1 - teacher_share) q, of the teacher at `temperature` and the student.

    Tokens count as the student's; `logprobs` are the mixture's, so that the weight sampler_ratio corrects for it.
    Source: teacher-mixed sampling, MiniLLM, arXiv:2306.08543, section 2.2.
    Raises: DataError when the teacher is behind a server; NonFinite where logits are not finite.
    """
    from tasks.opd.engines.mixture import generate_mixed
    own, theirs = (engines.engine(name, name="torch") for name in ("student", "teacher"))
    if not hasattr(theirs, "model"):
        raise DataError("writer mixture needs the teacher's distribution at every token, which no server gives; give "
                        "teacher.model a model of the pair that lies in a folder")
    with engines.session.progress(len(prompts), "student and teacher write", "rollouts") as bar:
        written = generate_mixed(own, theirs, [p.token_ids for p in prompts], engines.sampling, seeds,
                                 teacher_share=teacher_share, teacher_temperature=temperature, progress=bar)
    if any(math.isnan(sum(completion.logprobs)) for completion in written):
        raise NonFinite("the logits of the student or the teacher are not finite: look at their weights; for a model "
                        "from outside, engine.dtype: float32 may help")
    engines.costs.update(dict.fromkeys((WRITTEN[STUDENT], READ), sum(len(c.token_ids) for c in written)))
    policy = fingerprint_of(engines.inputs["student"])
    return [Draft(token_ids=c.token_ids, logprobs=c.logprobs, author=[STUDENT] * len(c.token_ids),
                  finish_reason=c.finish_reason, policy=[policy] * len(c.token_ids)) for c in written]


WRITERS = {"student": Entry(student, authors=("student",), on_policy=True),
           "teacher": Entry(teacher, authors=("teacher",), asks_teacher=True),
           "dataset": Entry(dataset, authors=("dataset",), shows_solution=True),
           "mixture": Entry(mixture, authors=("student",), on_policy=True, asks_teacher=True)}


def round_prompts(ids: list[str], per_round: int, round_index: int, seed: int) -> list[str]:
    """The prompts of a round: a window of a stream of permutations of `ids`, one an epoch; no prompt twice in a round.

    A window that runs over the end of an epoch holds back, in the next permutation, the prompts it already has.
    """
    size, stream, epoch = min(per_round, len(ids)), [], 0
    while size and len(stream) < (round_index + 1) * size:
        order = sorted(ids, key=lambda i: derive_seed(seed, "order", epoch, i))
        begun = set(stream[len(stream) - len(stream) % size:])
        stream += sorted(order, key=lambda i: i in begun)  # stable: the permutation, those begun last
        epoch += 1
    return stream[round_index * size:(round_index + 1) * size]


def deal(ids: list[str], fractions: list[float], seed: int, round_index: int) -> list[list[str]]:
    """Each writer's prompts, in the order of `ids`; shares are exact to rounding.

    The prompts lie on a circle in hashed order and each writer takes the next arc, so fractions that sum to 1 partition
    the prompts, and a fraction of 1 takes all.
    """
    circle = sorted(ids, key=lambda i: derive_seed(seed, round_index, "writers", i))
    arcs, start = [], 0.0
    for fraction in fractions:
        first, last = round(start * len(ids)), round((start + fraction) * len(ids))
        taken = {circle[i % len(ids)] for i in range(first, last)}
        arcs.append([i for i in ids if i in taken])
        start = (start + fraction) % 1.0
    return arcs


def deal_by_domain(prompts: list[Prompt], writers: list[dict], seed: int, round_index: int) -> list[list[str]]:
    """Each writer's prompts among those of its domains; writers with the same domains deal these among themselves."""
    shares: list[list[str]] = [[] for _ in writers]
    for domains in {tuple(sorted(writer["domains"])) for writer in writers}:
        own = [i for i, writer in enumerate(writers) if tuple(sorted(writer["domains"])) == domains]
        ids = [prompt.prompt_id for prompt in prompts if not domains or prompt.domain in domains]
        for i, dealt in zip(own, deal(ids, [writers[i]["fraction"] for i in own], seed, round_index)):
            shares[i] = dealt
    return shares


def split_fitting(prompts: list[Prompt], room: int) -> tuple[list[Prompt], list[Quarantined]]:
    """Prompts of at most `room` tokens, and the others."""
    long = [p for p in prompts if len(p.token_ids) > room]
    reason = "prompt and completion limit exceed the context"
    quarantined = [Quarantined(item_id=p.prompt_id, reason=reason, text=f"{len(p.token_ids)} tokens, room for {room}")
                   for p in long]
    return [p for p in prompts if len(p.token_ids) <= room], quarantined


def write_rollouts(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """The stage `rollouts`: rollouts.parquet, quarantined.parquet. Raises DataError when nothing is left to write."""
    prompts = read_rows(inputs["prompts"] / "prompts.parquet", Prompt)
    fitting, quarantined = split_fitting(prompts, spec["context_tokens"] - spec["sampling"]["max_new_tokens"])
    if not fitting:
        raise DataError(f"none of {len(prompts)} prompts fits into context_tokens {spec['context_tokens']} with "
                        f"max_new_tokens {spec['sampling']['max_new_tokens']}; raise the one or lower the other")
    by_id = {p.prompt_id: p for p in fitting}
    chosen = [by_id[i] for name, number in spec["prompts_per_round"].items()
              for i in round_prompts([i for i in by_id if source_of(i) == name], number, spec["round"], spec["seed"])]
    shares = deal_by_domain(chosen, spec["writers"], spec["seed"], spec["round"])
    engines, rollouts, started = Engines(inputs, spec, session), [], time.perf_counter()
    engines.most = dict(spec.get("most", {}))
    for label, writer, ids in zip(labels([w["name"] for w in spec["writers"]]), spec["writers"], shares):
        if writer["when"] == "always" or spec["round"] == 0:
            written, unfit = write_share(label, writer, [by_id[i] for i in ids], engines)
            rollouts, quarantined = rollouts + written, quarantined + unfit
    if not rollouts:
        names = ", ".join(w["name"] for w in spec["writers"])
        raise DataError(f"writers {names} have nothing to write in round {spec['round']}: each has "
                        "`when: first_round`, too small a fraction, or no solutions to copy")
    write_rows(out / "rollouts.parquet", rollouts, Rollout)
    write_rows(out / "quarantined.parquet", quarantined, Quarantined)
    log_rollouts(rollouts, time.perf_counter() - started, out, spec["round"], session)
    return counts_of(rollouts) | {"prompts": len(chosen), "quarantined": len(quarantined),
                                  **counted("rollouts", engines.costs)}


def labels(names: list[str]) -> list[str]:
    """Names made distinct: the second student is student.1."""
    seen: Counter = Counter()
    out = []
    for name in names:
        out.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return out


def write_share(label: str, writer: dict, prompts: list[Prompt],
                engines: Engines) -> tuple[list[Rollout], list[Quarantined]]:
    """One writer's rollouts of its prompts, and what it could not write."""
    spec, rollouts, quarantined = engines.spec, [], []
    places = [(prompt, sample) for prompt in prompts for sample in range(writer["n"])]
    seeds = [derive_seed(spec["seed"], spec["round"], prompt.prompt_id, sample, label) for prompt, sample in places]
    entry = WRITERS[writer["name"]]
    write = functools.partial(entry, engines=engines, **writer["params"])
    drafts = written_within(write, entry.authors, [p for p, _ in places], seeds, engines) if places else []
    places = places[:len(drafts)]
    for (prompt, sample), draft in zip(places, drafts, strict=True):
        rollout_id = f"{spec['round']}:{prompt.prompt_id}:{label}:{sample}"
        length = len(prompt.token_ids) + (len(draft.token_ids) if draft else 0)
        if draft is None or length > spec["context_tokens"]:
            reason = "nothing to write" if draft is None else "prompt and completion exceed the context"
            quarantined.append(Quarantined(item_id=rollout_id, reason=reason, text=f"{length} tokens"))
            continue
        rollouts.append(Rollout(
            rollout_id=rollout_id, prompt_id=prompt.prompt_id, group_id=f"{spec['round']}:{prompt.prompt_id}",
            domain=prompt.domain, prompt_token_ids=prompt.token_ids, token_ids=draft.token_ids, logprobs=draft.logprobs,
            author=draft.author, teacher_prompt_ids=None, origin=writer["name"], parent=None, policy=draft.policy,
            finish_reason=draft.finish_reason, reward=None, feedback=None))
    return rollouts, quarantined


def counts_of(rollouts: list[Rollout]) -> dict:
    """How many, how long, how many cut off."""
    tokens = sum(len(r.token_ids) for r in rollouts)
    by_origin = Counter(r.origin for r in rollouts)
    return {"rollouts": len(rollouts), "tokens": tokens, "length_mean_tokens": tokens / len(rollouts),
            "truncated_share": sum(r.finish_reason == "length" for r in rollouts) / len(rollouts),
            **{f"rollouts_{name}": n for name, n in sorted(by_origin.items())}}


def log_rollouts(rollouts: list[Rollout], seconds: float, out: Path, step: int, session) -> None:
    """Metrics; `sampled_surprise`, minus the mean log-probability of what was drawn, estimates the policy's entropy."""
    counts = counts_of(rollouts)
    values = {"rollout/length_mean_tokens": counts["length_mean_tokens"],
              "rollout/truncated_share": counts["truncated_share"],
              "rollout/tokens_per_second": counts["tokens"] / max(seconds, 1e-9)}
    drawn = [lp for r in rollouts for lp in r.logprobs if not math.isnan(lp)]
    if drawn:
        values["rollout/sampled_surprise_nats"] = -sum(drawn) / len(drawn)
    session.log(out, step, values)
