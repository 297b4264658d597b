"""The records that stages pass on, and their Parquet files. No torch.

Rows are frozen dataclasses; a file's schema is read off the dataclass, never inferred from data, and pages carry
checksums. Seeds are hashed from what they belong to, never added.
"""
import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.opd.core.errors import CorruptArtifact

STUDENT, TEACHER, ENVIRONMENT, DATASET = range(4)  # who wrote a token


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One question, as the student sees it, and what is needed to grade an answer and to inform a teacher."""
    prompt_id: str                      # "<source>:<index>"
    index: int                          # in its source
    text: str                           # the question, before the chat template
    token_ids: list[int]                # [P] rendered by the student's chat template
    answer: str                         # the truth the grader compares with
    solution: str | None                # a worked solution, where the source has one
    entry: str                          # JSON: what else the grader needs
    domain: str
    history: str = ""                   # JSON: the messages before the question; empty: none

    @property
    def turns(self) -> list[dict[str, str]]:
        """The messages before the question, each with role and content."""
        return json.loads(self.history) if self.history else []


def source_of(prompt_id: str) -> str:
    """The name of the source that a prompt is from."""
    return prompt_id.rpartition(":")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A prompt or rollout that is not used, and why."""
    item_id: str
    reason: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One completion of one prompt, as it was written."""
    rollout_id: str
    prompt_id: str
    group_id: str                       # the prompt's group in this round
    domain: str
    prompt_token_ids: list[int]         # [P]
    token_ids: list[int]                # [T] completion only, its EOS included
    logprobs: list[float]               # [T] nats, of the distribution sampled from; NaN where the writer gives none
    author: list[int]                   # [T] STUDENT, TEACHER, ENVIRONMENT or DATASET
    teacher_prompt_ids: list[int] | None  # what the teacher sees instead of the prompt; None: the same
    origin: str                         # name of the writer
    parent: str | None                  # rollout_id it was refined from
    policy: list[str]                   # [T] fingerprint of the model version that wrote the token; "" where none did
    finish_reason: str                  # "stop" (EOS) or "length"
    reward: float | None                # None until graded
    feedback: str | None                # what the grader had to say


def first_tokens(rollout: Rollout, tokens: int) -> Rollout:
    """The rollout with its first `tokens` tokens only."""
    return dataclasses.replace(rollout, token_ids=rollout.token_ids[:tokens], logprobs=rollout.logprobs[:tokens],
                               author=rollout.author[:tokens], policy=rollout.policy[:tokens])


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One graded answer of an evaluation."""
    benchmark: str
    prompt_id: str
    sample_index: int
    token_ids: list[int]                # [T]
    text: str
    reward: float
    feedback: str | None
    finish_reason: str


ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(),
               list[int]: pa.list_(pa.int64()), list[float]: pa.list_(pa.float64()),
               list[str]: pa.list_(pa.string())}

UNREADABLE = (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError)  # what damage makes of Parquet


def schema_of(row_type: type) -> pa.Schema:
    """The Arrow schema of a record: `X | None` is nullable, everything else is not."""
    fields = []
    for name, hint in typing.get_type_hints(row_type).items():
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        nullable = type(None) in typing.get_args(hint)
        fields.append(pa.field(name, ARROW_TYPES[options[0] if nullable else hint], nullable=nullable))
    return pa.schema(fields)


def write_rows(path: Path, rows: list, row_type: type) -> None:
    """Write records as Parquet with page checksums."""
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in dataclasses.fields(row_type)}
    table = pa.Table.from_pydict(columns, schema=schema_of(row_type))
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_rows(path: Path, row_type: type) -> list:
    """Read records written by `write_rows`. Raises CorruptArtifact when the file is damaged or of another schema."""
    return [row_type(**row) for row in read_table(path, schema_of(row_type).names).to_pylist()]


def read_table(path: Path, columns: list[str]) -> pa.Table:
    """A Parquet file with these columns.

    Raises: CorruptArtifact when it is damaged or has others. A lack of memory stays what it is.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True, memory_map=False)
        table.validate(full=True)
        found = table.schema.names
    except UNREADABLE as error:
        raise CorruptArtifact(f"{path} cannot be read as Parquet: {error}") from error
    if found != columns:
        raise CorruptArtifact(f"{path} has columns {found}, expected {columns}")
    return table


