"""Standard error that nobody reads, or that is not there, in processes of their own."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRINT = """
import os, sys, warnings, logging
from tqdm import tqdm
from tasks.opd.core.streams import keep_printing
keep_printing()
assert sys.stderr.isatty() is False and sys.__stderr__.fileno() == 2
kept = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
assert kept > 2                         # not the number of a standard stream
os.read(0, 1)                           # until the reader is gone
for number in tqdm(range(3), file=sys.stderr, mininterval=0):
    print("opd: a line", number, file=sys.stderr, flush=True)
warnings.warn("a warning")
logging.getLogger("some").error("an error")
print("went on")
"""


def command(code: str, *argv: str) -> list[str]:
    return [sys.executable, "-c", code, *argv]


def test_printing_to_a_reader_that_is_gone_is_no_error(tmp_path):
    run = subprocess.Popen(command(PRINT, str(tmp_path / "file")), cwd=ROOT, stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stderr.close()
    assert run.communicate("x", timeout=600)[0] == "went on\n" and run.returncode == 0


def test_a_process_without_standard_error_prints_nowhere_and_no_file_gets_its_number(tmp_path):
    run = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command(PRINT, str(tmp_path / "file"))], cwd=ROOT,
                         input="x", stdout=subprocess.PIPE, text=True, timeout=600)
    assert (run.returncode, run.stdout, (tmp_path / "file").read_text()) == (0, "went on\n", "")


def test_what_is_printed_arrives_where_somebody_reads():
    code = PRINT.split("assert")[0] + "print('one é', file=sys.stderr); print('two', end='', file=sys.stderr)"
    run = subprocess.run(command(code), cwd=ROOT, capture_output=True, timeout=600,
                         env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert run.stderr.decode() == "one é\ntwo"


@pytest.mark.parametrize("where, code, said", [("/dev/full", 1, "the result could not be printed: [Errno 28]"),
                                               (None, 0, "")])
def test_a_result_that_a_full_disk_loses_is_an_error_and_one_whose_reader_is_gone_is_not(where, code, said):
    read, write = (None, os.open(where, os.O_WRONLY)) if where else os.pipe()
    if read:
        os.close(read)
    run = subprocess.run([sys.executable, "-m", "flows.cli", "status"], cwd=ROOT, stdout=write,
                         stderr=subprocess.PIPE, text=True, timeout=600)
    os.close(write)
    assert run.returncode == code and said in run.stderr and "Traceback" not in run.stderr
