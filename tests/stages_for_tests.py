"""Small real stages, and a chain of them to run in a process of its own: `python -m tests.stages_for_tests process`;
with the name of a stage, its spec and perhaps its inputs as JSON, that stage alone.

numbers -> doubled -> total, the last also reading numbers. Each writes a line to spec["effort"]["journal"], where
given, when it is really made. `trouble`, also in effort, makes the stage of that name misbehave; `trouble_once` does so
in its first attempt only, that with the whole micro_batch_tokens.
"""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from tasks.opd.core.errors import NonFinite
from tasks.opd.store.artifacts import HIDDEN, STATE, Artifact, promised
from tasks.stage import run_stage
from tasks.workers import pools

HERE = "tests.stages_for_tests"
WHOLE_BATCH = 64  # of effort.micro_batch_tokens, in a first attempt


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


def checkpoint(inputs, spec, out, session):
    """As `weights`, with an optimizer's state that training goes on from."""
    note("checkpoint", spec, out)
    before = int((inputs["student"] / STATE).read_text()) if inputs else 0
    (out / "model").mkdir()
    (out / "model" / "w").write_text(str(before + 1))
    (out / STATE).write_text(str(before + 1))
    return {"weight": before + 1}


def read(inputs, spec, out, session):
    """What reads a checkpoint's weights alone."""
    note("read", spec, out)
    (out / "read").write_text((inputs["student"] / "model" / "w").read_text())
    return {}


def scored(inputs, spec, out, session):
    """Scores in miniature: a signal that stays, and hidden states whose rounding the batch decides."""
    note("scored", spec, out)
    (out / "signal").write_text("signal")
    (out / HIDDEN).write_text(f"of a batch of {spec['effort'].get('batch_tokens')}")
    return {}


def trained(inputs, spec, out, session):
    """Training in miniature: it reads hidden states, after a while where `effort.reading` says which file to await."""
    note("trained", spec, out)
    if reading := spec["effort"].get("reading"):
        Path(reading).touch()
        while Path(reading).exists():
            time.sleep(0.01)
    (out / "model").mkdir()
    (out / "model" / "w").write_text(promised(inputs["scores"], HIDDEN).read_text())
    return {}


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


def hungry(inputs, spec, out, session):
    """Hold `megabytes` for a moment."""
    held = b"\1" * (spec["megabytes"] << 20)
    (out / "size.json").write_text(str(len(held)))
    return {}


def long(inputs, spec, out, session):
    """A bar that takes `seconds`, ten units a second of five tokens each."""
    with session.progress(round(10 * spec["seconds"]), "counting", "units") as bar:
        for _ in range(round(10 * spec["seconds"])):
            time.sleep(0.1)
            bar.update(1, tokens=5)
    return {}


def generated(inputs, spec, out, session):
    """Write with vLLM, its EngineCore a process of its own, until something dies; says in `told` when it is up."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    from tasks.opd.engines.vllm_engine import VllmEngine
    engine, batch = VllmEngine(Path(spec["model"]), dtype="float32"), spec["effort"]["micro_batch_tokens"]
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 16}
    while True:
        written = engine.generate([[5, 9, 11]], sampling, [0])[0].token_ids
        (Path(spec["told"]) / f"batch-{batch}").write_text(str(len(written)))


def note(stage, spec, out):
    """Write the journal, then misbehave as told."""
    effort = spec.get("effort", {})
    if "journal" in effort:
        with open(effort["journal"], "a") as file:
            file.write(f"{stage}\n")
    first = effort.get("micro_batch_tokens") == WHOLE_BATCH
    name, _, trouble = (effort.get("trouble") or (effort.get("trouble_once", "") if first else "")).partition(":")
    if name == stage:
        (out / "half").write_text("half")
        TROUBLES[trouble]()


def leave():
    """Start a child that leads a session of its own, and hang."""
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    hang()


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


def no_engine():
    class EngineDeadError(Exception):
        """As vLLM calls it."""
    raise EngineDeadError("EngineCore encountered an issue.")


def slow():
    time.sleep(0.5)


TROUBLES = {"hang": hang, "leave": leave, "die": die, "nan": not_finite, "unforeseen": unforeseen, "memory": no_memory,
            "engine": no_engine, "slow": slow}


def chain(pool, count=4, cap=100, effort=None):
    """Run the three stages; returns their artifacts."""
    effort = {"effort": effort or {}}
    first = run_stage(f"{HERE}:numbers", {"count": count, **effort}, {}, pool)
    second = run_stage(f"{HERE}:doubled", {"cap": cap, **effort}, {"numbers": first}, pool)
    third = run_stage(f"{HERE}:total", {**effort}, {"doubled": second, "numbers": first}, pool)
    return first, second, third


def run_with(kind: str, patience_seconds: float = 600):
    """What `pools.for_run` reads of a recipe."""
    return SimpleNamespace(workers=kind, engine=SimpleNamespace(patience_seconds=patience_seconds))


if __name__ == "__main__":
    with pools.for_run(run_with(sys.argv[1])) as the_pool:
        if sys.argv[2:]:
            given = json.loads(sys.argv[4]) if sys.argv[4:] else {}
            read = {name: Artifact.from_json(data) for name, data in given.items()}
            run_stage(f"{HERE}:{sys.argv[2]}", json.loads(sys.argv[3]), read, the_pool)
            sys.exit()
        last = chain(the_pool, effort=json.loads(os.environ.get("CHAIN_EFFORT", "{}")))[-1]
        print(json.dumps({"total": last.counts["total"], "digest": last.digest, "made": the_pool.made,
                          "reused": the_pool.reused}))
