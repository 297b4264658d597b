"""Seconds of plain rollouts of TorchEngine, and of SKD from those rollouts, in one run. Not collected by pytest.

    python tests/bench_skd.py STUDENT TEACHER [--prompts 16] [--samples 4] [--new 128] [--draft 5] [--repeats 3]
        [--temperature 1] [--top-p 1] [--teacher-temperature 1] [--teacher-top-p 1]

STUDENT and TEACHER are model folders. Prompts are gsm_symbolic's. Medians are printed, and two ratios: SKD / rollouts,
and (rollouts + SKD) / rollouts, which is what a round with SKD takes to write, as the rollouts it begins from are not
free unless another run has made them.
"""
import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from tasks.workers.launchers import quiet_environment

quiet_environment()  # says how torch's threads wait, so before torch is imported

from tasks.opd.core.records import Prompt, read_rows  # noqa: E402
from tasks.opd.data.prompts import make_prompts  # noqa: E402
from tasks.opd.engines.pool import Session  # noqa: E402
from tasks.opd.recipe.loading import load  # noqa: E402
from tasks.opd.rollouts.interleaving import skd  # noqa: E402
from tasks.opd.rollouts.writers import Engines, write_share  # noqa: E402
from tasks.opd.store.artifacts import LOCATION  # noqa: E402  the line above must come first


def artifact(home: Path, name: str, folder: Path) -> Path:
    """A model that lies elsewhere, as stages are given one."""
    (home / name).mkdir()
    (home / name / LOCATION).write_text(json.dumps({"path": str(folder.resolve())}))
    return home / name


def prompts_of(student: Path, count: int, session: Session) -> list[Prompt]:
    """The first prompts of gsm_symbolic, for the student."""
    source = load("skd", ["prompts=gsm_symbolic", "pair.context_tokens=512"]).prompts.model_dump(mode="json")
    with tempfile.TemporaryDirectory() as out:
        make_prompts({"student": student}, {**source, "count": count, "context_tokens": 512}, Path(out), session)
        return read_rows(Path(out) / "prompts.parquet", Prompt)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("student", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--k", type=int, default=25)
    parser.add_argument("--draft", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    for option in ("--temperature", "--top-p", "--teacher-temperature", "--teacher-top-p"):
        parser.add_argument(option, type=float, default=1.0)
    args = parser.parse_args()
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "top_k": 0, "max_new_tokens": args.new}
    spec = {"round": 0, "seed": 0, "context_tokens": 512, "sampling": sampling,
            "engine": {"name": "torch", "dtype": args.dtype, "batch_tokens": 65536}}
    seconds: dict[str, list[float]] = {"rollouts": [], "skd": []}
    with Session() as session, tempfile.TemporaryDirectory() as home:
        inputs = {name: artifact(Path(home), name, getattr(args, name)) for name in ("student", "teacher")}
        engines, prompts = Engines(inputs, spec, session), prompts_of(inputs["student"], args.prompts, session)
        skd([], engines)  # both models are loaded before anything is timed
        for repeat in range(args.repeats):
            spec["seed"] = repeat
            start = time.perf_counter()
            rollouts, _ = write_share("student", {"name": "student", "n": args.samples, "params": {}}, prompts, engines)
            seconds["rollouts"].append(time.perf_counter() - start)
            start = time.perf_counter()
            after = skd(rollouts, engines, k=args.k, draft_tokens=args.draft,
                        teacher_temperature=args.teacher_temperature, teacher_top_p=args.teacher_top_p)
            seconds["skd"].append(time.perf_counter() - start)
            print(f"{seconds['rollouts'][-1]:.1f} s, {seconds['skd'][-1]:.1f} s; mean tokens",
                  *(sum(len(r.token_ids) for r in rows) / len(rows) for rows in (rollouts, after)),
                  {name: round(value, 3) for name, value in engines.report.items()}, flush=True)
    ratio = statistics.median(b / a for a, b in zip(seconds["rollouts"], seconds["skd"]))
    print(f"{args.prompts} x {args.samples} x {args.new}, k {args.k}, drafts of {args.draft}: "
          + ", ".join(f"{name} {statistics.median(values):.1f} s" for name, values in seconds.items())
          + f", SKD / rollouts {ratio:.2f}, both / rollouts {1 + ratio:.2f}")


if __name__ == "__main__":
    main()
