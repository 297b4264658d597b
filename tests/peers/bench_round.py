"""A round here against a step of TRL's DistillationTrainer, on the same models and prompts. Not collected by pytest.

    python -m tests.peers.bench_round [--prompts 16] [--samples 1] [--new 128] [--rounds 3] [--blocks 2]
                                      [--engine torch|vllm] [--set train.micro_batch_tokens=2048 ...]

Both distil the pair smollm2_pruned by the exact reverse KL over the whole vocabulary, in bfloat16 over float32 weights,
with the same number of optimizer steps. Sides alternate in blocks, each a process of its own, whose first round is not
counted. Seconds are of whole rounds: rollouts, the teacher, the update; here also what a round writes down, checkpoint
included, while TRL saves nothing. Completions end where the models end them, so seconds for a thousand tokens are
printed beside seconds. Memory is the largest sum of the resident pages of a side's processes, shared pages divided.
"""
import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from flows.platform.processes import tagged

SIDES = ("opdlab", "trl")


def recipe_of(args):
    """The round's recipe."""
    from tasks.opd.recipe import loading
    return loading.load("opd_reverse_kl_full", [
        "pair=smollm2_pruned", f"rounds={args.rounds + 1}", f"rollout.prompts_per_round={args.prompts}",
        f"rollout.writers.0.n={args.samples}", f"rollout.sampling.max_new_tokens={args.new}", "workers=inline",
        f"engine.name={args.engine}", "engine.scores=torch", f"prompts.count={args.prompts * (args.rounds + 1)}",
        f"seed={args.seed}", "train.learning_rate=1e-5", "train.schedule=constant", *args.set])


def models_of(recipe, pool) -> tuple[dict, object]:
    """The pair's models and its prompts, as artifacts."""
    from tasks.bootstrap import make_models, models_needed
    from tasks.prompts import make_prompts
    models = make_models.fn(recipe.pair, models_needed(recipe), pool)
    return models, make_prompts.fn(recipe.prompts, models["student"], pool, context_tokens=recipe.pair.context_tokens,
                                   use="train")


def ours(args) -> None:
    """Rounds of the recipe's own stages in this process."""
    from tasks.grade import grade_rollouts
    from tasks.rollout import write_rollouts
    from tasks.score import score_rollouts
    from tasks.train import train_student
    from tasks.workers import pools
    recipe = recipe_of(args)
    with pools.for_run(recipe) as pool:
        models, prompts = models_of(recipe, pool)
        student = models["student"]
        for index in range(recipe.rounds):
            began = [time.perf_counter()]
            rollouts = write_rollouts.fn(recipe, models, student, prompts, pool, index)
            rollouts = grade_rollouts.fn(recipe, prompts, rollouts, pool, index)
            began.append(time.perf_counter())
            scores = score_rollouts.fn(recipe, models, student, prompts, rollouts, pool, index)
            began.append(time.perf_counter())
            student = train_student.fn(recipe, models, student, rollouts, scores, pool, index)
            began.append(time.perf_counter())
            parts = [round(end - start, 1) for start, end in itertools.pairwise(began)]
            tell(index, began[-1] - began[0], student.counts["trained_tokens"],
                 dict(zip(("rollouts", "scores", "checkpoint"), parts)))


def trls(args) -> None:
    """Steps of TRL's trainer over the same prompts."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    from tasks.opd.core.records import Prompt, read_rows
    from tasks.opd.store.artifacts import model_folder
    from tasks.workers import pools
    recipe = recipe_of(args)
    with pools.for_run(recipe) as pool:
        models, prompts = models_of(recipe, pool)
    student, teacher = (model_folder(models[name].path) for name in ("student", "teacher"))
    rows = read_rows(prompts.path / "prompts.parquet", Prompt)
    asked = [[{"role": "user", "content": row.text}] for row in rows for _ in range(args.samples)]
    load = {"dtype": "float32", "local_files_only": True}

    class Clock(TrainerCallback):
        """Tells each step's seconds and tokens."""

        def on_step_begin(self, settings, state, control, **more):
            self.began = time.perf_counter()

        def on_step_end(self, settings, state, control, **more):
            lengths = trainer._metrics["train"].get("completions/mean_length") or [0]
            tell(state.global_step - 1, time.perf_counter() - self.began,
                 int(lengths[-1] * args.prompts * args.samples), {})

    settings = DistillationConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=args.prompts * args.samples,
        max_steps=args.rounds + 1, max_completion_length=args.new, beta=1.0, temperature=1.0, bf16=True, use_cpu=True,
        learning_rate=1e-5, lr_scheduler_type="constant", report_to=[], save_strategy="no", logging_steps=1000,
        shuffle_dataset=False, disable_tqdm=True, gradient_checkpointing=False)
    trainer = DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(student, **load),
        teacher_model=AutoModelForCausalLM.from_pretrained(teacher, **load | {"dtype": "bfloat16"}),
        args=settings, train_dataset=Dataset.from_dict({"prompt": asked}),
        processing_class=AutoTokenizer.from_pretrained(student), callbacks=[Clock()])
    trainer.train()


def tell(index: int, seconds: float, tokens: int, stages: dict) -> None:
    """One round's line, for who started this process."""
    print("ROUND " + json.dumps({"index": index, "seconds": seconds, "tokens": tokens, "stages": stages}), flush=True)


def block(side: str, argv: list[str], home: str) -> tuple[list[dict], float]:
    """The counted rounds of a process of one side, and its peak memory in GB."""
    process = subprocess.Popen([sys.executable, "-m", "tests.peers.bench_round", "--side", side, *argv],
                               stdout=subprocess.PIPE, text=True, env={**os.environ, "OPD_HOME": home})
    peak, ended = [0.0], threading.Event()

    def watch():
        while not ended.wait(0.25):
            peak[0] = max(peak[0], resident(home))
    watcher = threading.Thread(target=watch)
    watcher.start()
    rounds = [json.loads(line.removeprefix("ROUND ")) for line in process.stdout if line.startswith("ROUND ")]
    ended.set()
    watcher.join()
    if process.wait():
        raise SystemExit(f"{side} ended with {process.returncode}")
    return rounds[1:], peak[0] / 1e9


def resident(home: str) -> float:
    """Bytes of the resident pages of the processes that work for a home; a page that n share counts 1/n to each."""
    total = 0
    for pid in tagged("OPD_HOME", home):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def a_thousand(one: dict) -> float:
    """Seconds for a thousand tokens of completions."""
    return 1000 * one["seconds"] / max(one["tokens"], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("prompts", 16), ("samples", 1), ("new", 128), ("rounds", 3), ("blocks", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--engine", choices=["torch", "vllm"], default="vllm")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the recipe, key=value")
    parser.add_argument("--side", choices=SIDES)
    args = parser.parse_args()
    if args.side:
        return ours(args) if args.side == "opdlab" else trls(args)
    rounds, peaks = {side: [] for side in SIDES}, {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as home:
        for number, side in itertools.product(range(args.blocks), SIDES):
            found, peak = block(side, [*sys.argv[1:], "--seed", str(number)], home)
            rounds[side] += map(a_thousand, found)
            peaks[side].append(peak)
            for one in found:
                print(f"{side:7} block {number}: {one['seconds']:6.1f} s, {one['tokens']:5} tokens, "
                      f"{a_thousand(one):5.1f} s a thousand, {peak:.1f} GB {one['stages'] or ''}", flush=True)
    median = {side: statistics.median(rounds[side]) for side in SIDES}
    print(f"TRL takes {median['trl'] / median['opdlab']:.2f} times the seconds a token, "
          f"{max(peaks['trl']) / max(peaks['opdlab']):.2f} times the memory")


if __name__ == "__main__":
    main()
