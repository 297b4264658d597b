"""Small real stages, and a chain of them to run in a process of its own: `python -m tests.stages_for_tests process`.

numbers -> doubled -> total, the last also reading numbers. Each writes a line to spec["effort"]["journal"], where
given, when it is really made. `trouble`, also in effort, makes the stage of that name misbehave.
"""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from tasks import workers
from tasks.opd.errors import NonFinite
from tasks.stage import run_stage

HERE = "tests.stages_for_tests"


def numbers(inputs, spec, out, session):
    """0 .. count-1; or what the file `spec["effort"]["surprise"]` says: a stage that is not deterministic."""
    note("numbers", spec, out)
    surprise = spec.get("effort", {}).get("surprise")
    values = json.loads(Path(surprise).read_text()) if surprise else list(range(spec["count"]))
    (out / "numbers.json").write_text(json.dumps(values))
    session.log(out, 0, {"numbers/seconds": time.time()})
    return {"count": len(values)}


def doubled(inputs, spec, out, session):
    """Twice each number, capped: so other numbers may give the same bytes."""
    note("doubled", spec, out)
    values = json.loads((inputs["numbers"] / "numbers.json").read_text())
    (out / "doubled.json").write_text(json.dumps([min(2 * value, spec["cap"]) for value in values]))
    return {}


def total(inputs, spec, out, session):
    """The sum of what was doubled."""
    note("total", spec, out)
    value = sum(json.loads((inputs["doubled"] / "doubled.json").read_text()))
    (out / "total.json").write_text(str(value))
    return {"total": value}


def weights(inputs, spec, out, session):
    """A checkpoint in miniature: the model before, plus one."""
    note("weights", spec, out)
    before = int((inputs["student"] / "model" / "w").read_text()) if inputs else spec["start"]
    (out / "model").mkdir()
    (out / "model" / "w").write_text(str(before + 1))
    return {"weight": before + 1}


def fill(inputs, spec, out, session):
    """Write `megabytes` in the way of a library."""
    size = spec["megabytes"] << 20
    if spec["by"] == "python":
        (out / "a").write_bytes(bytes(size))
    else:
        import torch
        tensor = torch.zeros(size, dtype=torch.uint8)
        if spec["by"] == "torch":
            torch.save(tensor, out / "a")
        elif spec["by"] == "safetensors":
            from safetensors.torch import save_file
            save_file({"a": tensor}, out / "a")
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq
            pq.write_table(pa.table({"a": [os.urandom(1 << 20)] * spec["megabytes"]}), out / "a", use_dictionary=False,
                           compression="none")
    return {}


def note(stage, spec, out):
    """Write the journal, then misbehave as told."""
    effort = spec.get("effort", {})
    if "journal" in effort:
        with open(effort["journal"], "a") as file:
            file.write(f"{stage}\n")
    name, _, trouble = effort.get("trouble", "").partition(":")
    if name == stage:
        (out / "half").write_text("half")
        TROUBLES[trouble]()


def hang():
    """Start a child and a grandchild, then do nothing for long."""
    subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"])
    print("hanging", flush=True)
    time.sleep(600)


def die():
    """End as by the kernel's out-of-memory killer."""
    print("last words before dying", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def not_finite():
    raise NonFinite("loss is nan in step 3")


def unforeseen():
    raise KeyError("nobody thought of this")


def no_memory():
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")


def slow():
    time.sleep(0.5)


TROUBLES = {"hang": hang, "die": die, "nan": not_finite, "unforeseen": unforeseen, "memory": no_memory, "slow": slow}


def chain(crew, count=4, cap=100, effort=None):
    """Run the three stages; returns their artifacts."""
    effort = {"effort": effort or {}}
    first = run_stage(f"{HERE}:numbers", {"count": count, **effort}, {}, crew)
    second = run_stage(f"{HERE}:doubled", {"cap": cap, **effort}, {"numbers": first}, crew)
    third = run_stage(f"{HERE}:total", {**effort}, {"doubled": second, "numbers": first}, crew)
    return first, second, third


if __name__ == "__main__":
    with workers.for_run(SimpleNamespace(workers=sys.argv[1])) as the_crew:
        last = chain(the_crew, effort=json.loads(os.environ.get("CHAIN_EFFORT", "{}")))[-1]
        print(json.dumps({"total": last.counts["total"], "digest": last.digest, "made": the_crew.made,
                          "reused": the_crew.reused}))
