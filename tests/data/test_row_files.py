"""Files as people bring them: what is read, what loses a line, and what is refused with its format."""
import gzip
import json

import pytest

from tasks.opd.core.errors import DataError
from tasks.opd.data.row_files import content_hash, numbered_rows

ROWS = [{"question": "caf\u00e9?", "answer": "4"}, {"question": "2 + 3?", "answer": "5"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def rows_of(path) -> list[dict]:
    return [row for _, row in numbered_rows(str(path))]


def refusal(tmp_path, content: bytes) -> str:
    (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="q.jsonl") as refused:
        rows_of(tmp_path / "q.jsonl")
    return str(refused.value)


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
@pytest.mark.parametrize("content", [
    LINES.encode(), LINES.encode("utf-8-sig"), LINES.replace("\n", "\r\n").encode(), LINES.rstrip().encode(),
    json.dumps(ROWS).encode(), json.dumps(ROWS, indent=1).encode("utf-8-sig"),
    json.dumps(ROWS, ensure_ascii=False).encode()])
def test_the_same_rows_come_out_of_every_way_to_write_them(content, packed, tmp_path):
    (tmp_path / "q.jsonl").write_bytes(packed(content))
    assert rows_of(tmp_path / "q.jsonl") == ROWS


def test_places_are_lines_of_a_file_and_elements_of_an_array(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "b.jsonl").write_text(json.dumps(ROWS))
    assert [place.rpartition("/")[2] for place, _ in numbered_rows(str(tmp_path))] == [
        "a.jsonl:1", "a.jsonl:2", "b.jsonl[0]", "b.jsonl[1]"]


def test_a_folder_has_its_jsonl_and_jsonl_gz_in_the_order_of_their_names(tmp_path):
    for name, content in (("b.jsonl", b"{\"n\": 2}"), ("a.jsonl.gz", gzip.compress(b"{\"n\": 1}")), ("c.txt", b"{}")):
        (tmp_path / name).write_bytes(content)
    assert rows_of(tmp_path) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("line, why", [
    ("caf\u00e9".encode("cp1252"), "not UTF-8: byte 0xe9 at character 4"), (b"\xed\xa0\x80", "not UTF-8"),
    (b"[" * 100_000, "not JSON: maximum recursion"), (b"{\"a\": " * 100_000, "not JSON: maximum recursion"),
    (b"1" * 5000, "not JSON"), (b"[1]", "not a JSON object"), (b"", "not JSON"), (b"{\"question\"", "not JSON")])
def test_what_is_wrong_with_a_line_is_said_in_its_place(line, why, tmp_path):
    for content in (b"\n".join([LINES.encode().rstrip(), line, b"{}"]), b"\n".join([line, LINES.encode() + b"{}"])):
        (tmp_path / "q.jsonl").write_bytes(content)
        found = rows_of(tmp_path / "q.jsonl")
        [bad] = [row for row in found if "invalid" in row]
        assert why in bad["invalid"] and [row for row in found if row is not bad] == [*ROWS, {}]


def test_other_formats_are_refused_by_name(tmp_path):
    for encoding in ("UTF-16", "UTF-32"):
        assert encoding in refusal(tmp_path, LINES.encode(encoding))
    assert "NUL bytes, as UTF-16" in refusal(tmp_path, LINES.encode("utf-16-le"))
    assert "Parquet" in refusal(tmp_path, b"PAR1" + bytes(8)) and "zip" in refusal(tmp_path, b"PK\x03\x04" + bytes(8))
    assert "UTF-8, plain or gzip: convert it" in refusal(tmp_path, b"BZh91AY")
    assert "gzip twice" in refusal(tmp_path, gzip.compress(gzip.compress(b"{}")))


def test_a_gzip_file_that_is_cut_off_or_damaged_is_refused(tmp_path):
    packed = gzip.compress(LINES.encode() * 100)
    assert "cannot be read" in refusal(tmp_path, packed[:-12])
    assert "cannot be read" in refusal(tmp_path, packed[:12] + bytes([packed[12] ^ 0xff]) + packed[13:])


def test_a_broken_array_is_refused_with_the_place(tmp_path):
    assert "begins as a JSON array and is none" in refusal(tmp_path, json.dumps(ROWS, indent=1).encode()[:-3])
    assert "begins as a JSON array" in refusal(tmp_path, b"[\n" + "caf\u00e9".encode("cp1252") + b"]")


def test_an_edited_file_of_a_source_changes_its_hash(tmp_path):
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train.jsonl.gz"
    for params in ({"path": str(tmp_path / "data")}, {"dataset": str(tmp_path)}):
        file.write_bytes(b"1")
        before = content_hash(params)
        file.write_bytes(b"2")
        assert before and content_hash(params) not in (before, None)
    assert content_hash({"dataset": "openai/gsm8k"}) is None and content_hash({"seed": 0}) is None
