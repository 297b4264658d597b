"""Records as Parquet files: what comes back, and what is said of a damaged one."""
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.opd.core.errors import CorruptArtifact
from tasks.opd.core.records import Sample, read_rows, write_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """The least record."""
    number: int
    text: str


ROWS = [Item(number=i, text="été" * i) for i in range(4)]


@pytest.fixture
def file(tmp_path):
    write_rows(tmp_path / "rows.parquet", ROWS, Item)
    return tmp_path / "rows.parquet"


def test_rows_come_back_as_they_were(file):
    assert read_rows(file, Item) == ROWS


def test_whatever_a_flipped_byte_breaks_is_a_corrupt_artifact(file):
    """Every byte in turn. A flip may do no harm, but no other error comes of it than ours, whatever its cause."""
    data, causes = file.read_bytes(), set()
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1:])
        try:
            read_rows(file, Item)
        except CorruptArtifact as error:
            causes.add(type(error.__cause__))
    assert causes == {OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, type(None)}


def test_a_file_cut_short_missing_or_of_other_columns_is_corrupt(file):
    with pytest.raises(CorruptArtifact, match=r"has columns \['number', 'text'\], expected \['benchmark'"):
        read_rows(file, Sample)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CorruptArtifact, match="cannot be read as Parquet"):
        read_rows(file, Item)
    with pytest.raises(CorruptArtifact, match="no.parquet cannot be read"):
        read_rows(file.with_name("no.parquet"), Item)


def test_a_lack_of_memory_is_no_damage(file, monkeypatch):
    def short(*given, **options):
        raise pa.ArrowMemoryError("malloc of size 64 failed")
    monkeypatch.setattr(pq, "read_table", short)
    with pytest.raises(MemoryError, match="malloc"):
        read_rows(file, Item)


def test_text_that_is_no_utf_8_is_corrupt(file):
    table = pq.read_table(file)
    wrong = pa.array([b"\xff\xfe"] * len(ROWS), pa.binary()).view(pa.string())
    pq.write_table(table.set_column(1, table.schema.field("text"), wrong), file)
    with pytest.raises(CorruptArtifact, match="UTF8"):
        read_rows(file, Item)
