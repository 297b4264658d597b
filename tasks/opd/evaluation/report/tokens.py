"""Rollouts token by token: who wrote each, what student and teacher thought of it, what the teacher would have written.

Only what the store keeps: the student's log-probability as it was sampled, the teacher's columns of `signal.parquet`.
Weights, advantages and the student's entropies live in training only.
"""
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from tasks.opd.core.records import Prompt, Rollout, read_rows
from tasks.opd.evaluation.report.lineage import Round, Stage
from tasks.opd.evaluation.report.prompts import shortened
from tasks.opd.store.artifacts import Artifact

COUNT = 40                                  # rollouts a page
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
    student: list[float | None]             # [T] log-probability as sampled, nats
    said: list[Said]
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


def decoder(prompts: Path) -> Callable[[list[int]], str]:
    """What makes text of ids, by the tokenizer beside the prompts; ids in brackets where it has no tokenizer.json."""
    file = prompts / "tokenizer" / "tokenizer.json"
    if not file.exists():
        return lambda ids: "".join(f"[{token}]" for token in ids)
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(file))
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def chosen_rounds(rounds: list[Round], wanted: list[int] | None = None) -> list[Round]:
    """The first, the middle and the last round; those `wanted`, counted from 1, where some are."""
    if wanted:
        return [one for one in rounds if one.index + 1 in wanted]
    return [rounds[i] for i in sorted({0, len(rounds) // 2, len(rounds) - 1})] if rounds else []


def evenly(rows: list, count: int) -> list:
    """`count` of the rows, evenly spaced."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else rows


def shown_of(rounds: list[Round], pieces: Pieces, most_tokens: int, likeliest: int) -> list[Shown]:
    """COUNT rollouts of these rounds, evenly spaced over each: at most `most_tokens` tokens of each, and `likeliest` of
    the teacher's beside every one.
    """
    counts = [COUNT // len(rounds) + (i < COUNT % len(rounds)) for i in range(len(rounds))]
    return [shown for one, count in zip(rounds, counts)
            for shown in of_round(one, count, pieces, most_tokens, likeliest)]


def of_round(one: Round, count: int, pieces: Pieces, most_tokens: int, likeliest: int) -> list[Shown]:
    """Some rollouts of a round, as its training read them."""
    read = Artifact.from_json(one.checkpoint.record["inputs"]["rollouts"]).path
    rollouts = read_rows(read / "rollouts.parquet", Rollout)
    asked = {prompt.prompt_id: prompt for prompt in read_rows(prompts_of(one) / "prompts.parquet", Prompt)}
    signals, raw = {name: rows_of(stage) for name, stage in one.scores().items()}, raw_rollouts(one)
    found = []
    for rollout in evenly(rollouts, count):
        before = raw.get(rollout.parent) if rollout.parent else None
        ids, student = rollout.token_ids[:most_tokens], [number(value) for value in rollout.logprobs[:most_tokens]]
        found.append(Shown(
            rollout_id=rollout.rollout_id, round=one.index + 1, origin=rollout.origin, finish=rollout.finish_reason,
            question=shortened(asked[rollout.prompt_id].text, PROMPT_CHARACTERS) if rollout.prompt_id in asked else "",
            prompt=shortened(pieces.decode(rollout.prompt_token_ids), PROMPT_CHARACTERS), reward=rollout.reward,
            feedback=shortened(rollout.feedback or "", 300), tokens=pieces.spelt(ids),
            author=rollout.author[:most_tokens], student=student, left_out=len(rollout.token_ids) - len(ids),
            said=[said_of(name, rows[rollout.rollout_id], student, pieces, most_tokens, likeliest)
                  for name, rows in signals.items() if rows.get(rollout.rollout_id, {}).get("has_signal")],
            raw=shortened(pieces.decode(before.token_ids), RAW_CHARACTERS) if before else None,
            raw_reward=before.reward if before else None))
    return found


def prompts_of(one: Round) -> Path:
    """The prompts that a round's rollouts answer."""
    return Artifact.from_json(one.last("rollouts").record["inputs"]["prompts"]).path


def raw_rollouts(one: Round) -> dict[str, Rollout]:
    """What refiners were given, by rollout id; empty for a round that refines nothing."""
    refined = one.last("refined")
    if refined is None:
        return {}
    given = Artifact.from_json(refined.record["inputs"]["rollouts"]).path
    return {rollout.rollout_id: rollout for rollout in read_rows(given / "rollouts.parquet", Rollout)}


def rows_of(scores: Stage) -> dict[str, dict]:
    """A teacher's columns by rollout id."""
    table = pq.read_table(scores.path / "signal.parquet")
    return {row["rollout_id"]: row for row in table.drop_columns(["teacher_prompt_ids"]).to_pylist()}


def said_of(model: str, row: dict, student: list[float | None], pieces: Pieces, most: int, likeliest: int) -> Said:
    """A teacher's columns of one rollout, its first `most` tokens."""
    logprobs = [number(value) for value in (row["sampled"] or [])[:most]]
    tail, num_tokens = row["tail"] or [], len(student)
    width = len(row["ids"]) // len(tail) if tail else 0
    kept = min(width, likeliest)
    places = [slice(t * width, t * width + kept) for t in range(num_tokens)] if kept else []
    return Said(model=model, logprobs=logprobs, entropy=[number(value) for value in (row["entropy"] or [])[:most]],
                gap=[None if s is None else number(t - s) for t, s in zip(logprobs, student)],
                top=[[pieces.of_id(token) for token in row["ids"][place]] for place in places],
                top_logprobs=[[number(value) for value in row["logprobs"][place]] for place in places],
                tail=[number(value) for value in tail[:most]] if kept else [])


def trimmed(one: Shown, most_tokens: int, likeliest: int) -> Shown:
    """A rollout with at most so many tokens, and of the teacher's likeliest beside each."""
    cut, left = slice(most_tokens), max(len(one.tokens) - most_tokens, 0)
    said = [replace(said, logprobs=said.logprobs[cut], gap=said.gap[cut], entropy=said.entropy[cut],
                    tail=said.tail[cut], top=[some[:likeliest] for some in said.top[cut]] if likeliest else [],
                    top_logprobs=[some[:likeliest] for some in said.top_logprobs[cut]] if likeliest else [])
            for said in one.said]
    return replace(one, tokens=one.tokens[cut], author=one.author[cut], student=one.student[cut], said=said,
                   left_out=one.left_out + left)


def number(value: float) -> float | None:
    """To hundredths; None for NaN, which is no log-probability."""
    return round(value, 2) + 0.0 if value == value else None
