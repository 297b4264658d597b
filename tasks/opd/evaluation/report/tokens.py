"""Rollouts token by token: who wrote each, what student and teacher thought of it, what the teacher would have written.

Only what the store keeps: the student's log-probability as it was sampled, the teacher's columns of `signal.parquet`,
and the weights and advantages that training kept of the rollouts among which a page chooses (`core.token_columns`).
"""
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.opd.core import token_columns
from tasks.opd.core.errors import DataError
from tasks.opd.core.records import STUDENT, Rollout
from tasks.opd.core.token_columns import COUNT, TokenColumns, evenly
from tasks.opd.evaluation.report.lineage import Round
from tasks.opd.evaluation.report.prompts import asked, shortened
from tasks.opd.store.artifacts import Artifact

BATCH = 16                                  # rows of a file that are looked at at once
WINDOW = 6                                  # tokens before one that decide how it is spelt
RAW_CHARACTERS, PROMPT_CHARACTERS = 4000, 1500


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What one teacher says of a rollout's tokens; a column that was not kept is empty."""
    model: str
    logprobs: list[float]                   # [T] of the token written, nats
    gap: list[float | None]                 # [T] that minus the student's; None where the student did not write
    entropy: list[float]                    # [T] nats
    top: list[list[int]]                    # [T][k] likeliest tokens, as indices into `pieces`
    top_logprobs: list[list[float]]         # [T][k] nats
    tail: list[float]                       # [T] log of the mass of all tokens outside the k that were kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Used:
    """What a term of the loss took at a rollout's tokens."""
    term: str
    weight: list[float | None]              # [T]
    advantage: list[float | None]           # [T]; empty: the term has a divergence


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A rollout as a page shows it; its first T tokens."""
    rollout_id: str
    round: int                              # from 1
    question: str
    prompt: str                             # as the student was asked, special tokens included
    origin: str
    reward: float | None
    feedback: str
    finish: str
    tokens: list[int]                       # [T] indices into `pieces`
    author: list[int]                       # [T] as in core.records
    student: list[float | None]             # [T] log-probability as sampled, nats; None where another wrote
    said: list[Said]
    used: list[Used]                        # by the terms that learn of this rollout
    left_out: int                           # tokens behind the first T
    raw: str | None                         # what it was refined from; None: it was not
    raw_reward: float | None


@dataclass(kw_only=True, slots=True)
class Pieces:
    """How tokens are spelt; each spelling stands once on a page."""
    decode: Callable[[list[int]], str]
    texts: list[str] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    alone: dict[int, int] = field(default_factory=dict)     # token id -> the index of its spelling by itself

    def of(self, text: str) -> int:
        """The index of a spelling."""
        if text not in self.index:
            self.index[text] = len(self.texts)
            self.texts.append(text)
        return self.index[text]

    def of_id(self, token: int) -> int:
        """The index of a token's spelling by itself."""
        if token not in self.alone:
            self.alone[token] = self.of(self.decode([token]))
        return self.alone[token]

    def spelt(self, ids: list[int]) -> list[int]:
        """Indices of what each token adds to the text before it; a character of several tokens stands with the last."""
        found, done = [], 0
        for end in range(1, len(ids) + 1):
            start = max(0, min(done, end - WINDOW))
            before, after = self.decode(ids[start:done]), self.decode(ids[start:end])
            whole = not after.endswith("\ufffd") or end - done > 3  # no character has more bytes than four
            found.append(self.of(after[len(before):] if whole else ""))
            done = end if whole else done
        return found


def decoder(prompts: Artifact) -> Callable[[list[int]], str]:
    """What makes text of ids, by the tokenizer beside the prompts; ids in brackets where it has no tokenizer.json."""
    file = prompts.path / "tokenizer" / "tokenizer.json"
    if not file.exists():
        return lambda ids: "".join(f"[{token}]" for token in ids)
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(file))
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def chosen_rounds(rounds: list[Round], wanted: list[int] | None = None) -> list[Round]:
    """The first, the middle and the last round; those `wanted`, counted from 1, where some are.

    Raises: DataError where one of these has not finished.
    """
    if wanted:
        there = [one.index + 1 for one in rounds]
        if missing := [number for number in wanted if number not in there]:
            raise DataError(f"no round {', '.join(map(str, missing))} has finished; those that have are "
                            f"{', '.join(map(str, there)) or 'none'}")
        return [one for one in rounds if one.index + 1 in wanted]
    return [rounds[i] for i in sorted({0, len(rounds) // 2, len(rounds) - 1})] if rounds else []


def shown_of(rounds: list[Round], pieces: Pieces, most_tokens: int, likeliest: int) -> list[Shown]:
    """COUNT rollouts of these rounds, evenly spaced over each: at most `most_tokens` tokens of each, and `likeliest` of
    the teacher's beside every one.
    """
    counts = [COUNT // len(rounds) + (i < COUNT % len(rounds)) for i in range(len(rounds))]
    return [shown for one, count in zip(rounds, counts)
            for shown in of_round(one, count, pieces, most_tokens, likeliest)]


def of_round(one: Round, count: int, pieces: Pieces, most_tokens: int, likeliest: int) -> list[Shown]:
    """Some rollouts of a round, as its training read them; only these are read whole."""
    read = Artifact.from_json(one.checkpoint.record["inputs"]["rollouts"]).path / "rollouts.parquet"
    known = evenly(pq.read_table(read, columns=["rollout_id"])["rollout_id"].to_pylist(), COUNT)  # as kept
    chosen = evenly(known, count)
    rollouts = [Rollout(**as_lists(row)) for row in rows_of(read, chosen)]
    questions = asked(prompts_of(one))
    raw = raw_rollouts(one, [rollout.parent for rollout in rollouts if rollout.parent])
    signals = {name: {row["rollout_id"].as_py(): row for row in rows_of(stage.path / "signal.parquet", chosen)}
               for name, stage in one.scores().items()}
    used = token_columns.read(one.checkpoint.path / token_columns.FILE)
    found = []
    for rollout in rollouts:
        before, question = raw.get(rollout.parent), questions.get(rollout.prompt_id)
        ids, wrote = rollout.token_ids[:most_tokens], zip(rollout.author, rollout.logprobs[:most_tokens])
        student = [number(value) if author == STUDENT else None for author, value in wrote]
        found.append(Shown(
            rollout_id=rollout.rollout_id, round=one.index + 1, origin=rollout.origin, finish=rollout.finish_reason,
            question=shortened(question.text, PROMPT_CHARACTERS) if question else "", reward=rollout.reward,
            prompt=shortened(pieces.decode(rollout.prompt_token_ids), PROMPT_CHARACTERS),
            feedback=shortened(rollout.feedback or "", 300), tokens=pieces.spelt(ids),
            author=rollout.author[:most_tokens], student=student, left_out=len(rollout.token_ids) - len(ids),
            said=[said_of(name, rows[rollout.rollout_id], student, pieces, likeliest) for name, rows in signals.items()
                  if rollout.rollout_id in rows and rows[rollout.rollout_id]["has_signal"].as_py()],
            used=[used_of(row, len(ids)) for row in used if row.rollout_id == rollout.rollout_id],
            raw=shortened(pieces.decode(before.token_ids), RAW_CHARACTERS) if before else None,
            raw_reward=before.reward if before else None))
    return found


def prompts_of(one: Round) -> Artifact:
    """The prompts that a round's rollouts answer."""
    return Artifact.from_json(one.last("rollouts").record["inputs"]["prompts"])


def raw_rollouts(one: Round, parents: list[str]) -> dict[str, Rollout]:
    """What refiners were given, by rollout id; empty for a round that refines nothing."""
    refined = one.last("refined")
    if refined is None:
        return {}
    given = Artifact.from_json(refined.record["inputs"]["rollouts"]).path / "rollouts.parquet"
    return {row["rollout_id"].as_py(): Rollout(**as_lists(row)) for row in rows_of(given, parents)}


def rows_of(file: Path, rollout_ids: list[str]) -> list[dict[str, pa.Scalar]]:
    """The rows of these rollouts, in the file's order; of a file that may be far larger than they are."""
    wanted, found = pa.array(rollout_ids, pa.string()), []
    for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH):
        kept = batch.filter(pc.is_in(batch["rollout_id"], value_set=wanted))
        found += [{name: kept[name][i] for name in kept.schema.names} for i in range(kept.num_rows)]
    return found


def as_lists(row: dict[str, pa.Scalar]) -> dict:
    """A row as Python has it."""
    return {name: cell.as_py() for name, cell in row.items()}


def said_of(model: str, row: dict[str, pa.Scalar], student: list, pieces: Pieces, likeliest: int) -> Said:
    """A teacher's columns of one rollout, for as many tokens as `student` has log-probabilities."""
    columns = {name: row[name].values.to_numpy(zero_copy_only=False) if row[name].is_valid else np.zeros(0)
               for name in ("sampled", "ids", "logprobs", "tail", "entropy")}
    num_tokens, tail = len(student), columns["tail"]
    shape = (len(tail), -1) if len(tail) else (0, 0)
    ids, top = (columns[name].reshape(shape)[:num_tokens, :likeliest].tolist() for name in ("ids", "logprobs"))
    logprobs, entropy = (numbers(columns[name][:num_tokens]) for name in ("sampled", "entropy"))
    return Said(model=model, logprobs=logprobs, entropy=entropy, tail=numbers(tail[:num_tokens]),
                gap=[None if s is None or t is None else number(t - s) for t, s in zip(logprobs, student)],
                top=[[pieces.of_id(token) for token in some] for some in ids], top_logprobs=[*map(numbers, top)])


def used_of(row: TokenColumns, num_tokens: int) -> Used:
    """What a term took at the first tokens of a rollout, to three digits: weights may be small."""
    weight, advantage = ([float(f"{value:.3g}") if math.isfinite(value) else None for value in values[:num_tokens]]
                         for values in (row.weight, row.advantage or []))
    return Used(term=row.term, weight=weight, advantage=advantage)


def numbers(values: Iterable[float]) -> list[float | None]:
    """Each as `number` has it."""
    return [number(float(value)) for value in values]


def trimmed(one: Shown, most_tokens: int, likeliest: int) -> Shown:
    """A rollout with at most so many tokens, and of the teacher's likeliest beside each."""
    cut, left = slice(most_tokens), max(len(one.tokens) - most_tokens, 0)
    said = [replace(said, logprobs=said.logprobs[cut], gap=said.gap[cut], entropy=said.entropy[cut],
                    tail=said.tail[cut], top=[some[:likeliest] for some in said.top[cut]] if likeliest else [],
                    top_logprobs=[some[:likeliest] for some in said.top_logprobs[cut]] if likeliest else [])
            for said in one.said]
    used = [replace(used, weight=used.weight[cut], advantage=used.advantage[cut]) for used in one.used]
    return replace(one, tokens=one.tokens[cut], author=one.author[cut], student=one.student[cut], said=said, used=used,
                   left_out=one.left_out + left)


def number(value: float) -> float | None:
    """To hundredths; None for what is not finite, which no figure shows."""
    return round(value, 2) + 0.0 if math.isfinite(value) else None
