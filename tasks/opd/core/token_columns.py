"""What training made of single tokens, beside a checkpoint: each term's weight and advantage, of some rollouts.

They are what the terms took before the round's first step. At most COUNT rollouts of a round, evenly spaced, and the
first TOKENS tokens of each: 8 bytes a token and term, so at most 330 kB a term, however large the round. Whoever shows
rollouts chooses among these.
"""
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FILE = "tokens.parquet"
COUNT = 40                              # rollouts of a round
TOKENS = 1024                           # of a rollout
SCHEMA = pa.schema([pa.field("rollout_id", pa.string(), nullable=False), pa.field("term", pa.string(), nullable=False),
                    pa.field("weight", pa.list_(pa.float32()), nullable=False),
                    pa.field("advantage", pa.list_(pa.float32()))])


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenColumns:
    """A term's numbers at the first T tokens of a rollout of which it learns."""
    rollout_id: str
    term: str                           # its label, as metrics have it
    weight: list[float]                 # [T] >= 0, all the term's weights together; 0 where it does not learn
    advantage: list[float] | None       # [T] of the token written; NaN where it does not learn or this token is no
    # candidate. None: the term has a divergence


def evenly(rows: list, count: int) -> list:
    """`count` of the rows, evenly spaced."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else rows


def write(file: Path, rows: list[TokenColumns]) -> None:
    """Put rows in a Parquet file with page checksums."""
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    pq.write_table(pa.Table.from_pydict(columns, SCHEMA), file, compression="zstd", write_page_checksum=True)


def read(file: Path) -> list[TokenColumns]:
    """The rows of a file; none where there is no file."""
    if not file.exists():
        return []
    return [TokenColumns(**row) for row in pq.read_table(file, schema=SCHEMA).to_pylist()]
