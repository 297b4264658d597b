"""Having a teacher score rollouts: its distribution at every token of every completion, as files and back.

signal.parquet has one row a rollout, in the rollouts' order: has_signal, the prompt the teacher saw and the columns
asked for ([T], or [T * K] laid flat), null where there are none. hidden.safetensors has a tensor [T, d] a rollout id;
it goes after the round, and can be made again without the rest.
"""
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tasks.opd.core.costs import READ, counted
from tasks.opd.core.errors import CorruptArtifact, DataError, NonFinite, TokenizerMismatch
from tasks.opd.core.records import Prompt, Rollout, read_rows, read_table
from tasks.opd.engines.api import Signal, Want
from tasks.opd.rollouts.writers import teacher_role
from tasks.opd.scoring.contexts import CONTEXTS
from tasks.opd.store.artifacts import HIDDEN, model_folder, promised

COLUMNS = ("sampled", "ids", "logprobs", "tail", "entropy")


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the teacher sees before each rollout's completion; None where it gives no signal."""
    prompt_ids: list[list[int] | None]
    num_without: int            # the context has nothing to show
    num_too_long: int           # it would not fit


def views_of(rollouts: list[Rollout], prompts: dict[str, Prompt], context: dict, context_tokens: int,
             tokenizer) -> Views:
    """Apply a context to every rollout; a prompt that a refiner stored wins."""
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group_id].append(rollout)
    see, views, num_without, num_too_long = CONTEXTS[context["name"]], [], 0, 0
    for rollout in rollouts:
        group, prompt = groups[rollout.group_id], prompts[rollout.prompt_id]
        ids = rollout.teacher_prompt_ids or see(rollout, group, prompt, tokenizer, **context["params"])
        too_long = bool(ids) and len(ids) + len(rollout.token_ids) > context_tokens
        num_without, num_too_long = num_without + (not ids), num_too_long + too_long
        views.append(ids if ids and not too_long else None)
    return Views(prompt_ids=views, num_without=num_without, num_too_long=num_too_long)


def score_rollouts(inputs: dict[str, Path], spec: dict, out: Path, session) -> dict:
    """The stage `scores`.

    Raises: NonFinite naming the first rollout of which the teacher says NaN or infinity; TokenizerMismatch when its
    ids are not those of the student.
    """
    rollouts = read_rows(inputs["rollouts"] / "rollouts.parquet", Rollout)
    prompts = {p.prompt_id: p for p in read_rows(inputs["prompts"] / "prompts.parquet", Prompt)}
    folder, want = model_folder(inputs["model"], spec["folder"]), Want(**spec["want"])
    tokenizer = None
    if not CONTEXTS[spec["context"]["name"]].own_prompt:  # else the same ids again: nothing to render
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    views = views_of(rollouts, prompts, spec["context"], spec["context_tokens"], tokenizer)
    live = [i for i, ids in enumerate(views.prompt_ids)
            if ids is not None and (spec["domains"] is None or rollouts[i].domain in spec["domains"])]
    if not live and views.num_too_long:
        raise DataError(f"no rollout can be scored: what the teacher sees and the completion exceed "
                        f"pair.context_tokens {spec['context_tokens']} in {views.num_too_long} of {len(rollouts)}; "
                        "raise it")
    engine, started = session.engine(teacher_role(inputs["model"]), folder, spec["engine"]), time.perf_counter()
    check_vocabulary(engine, spec["vocabulary"])
    with session.progress(len(live), "score", "rollouts") as bar:
        scored = engine.score([views.prompt_ids[i] for i in live], [rollouts[i].token_ids for i in live], want,
                              temperature=spec["temperature"], progress=bar)
    seconds = time.perf_counter() - started
    for i, signal in zip(live, scored):
        check_finite(rollouts[i].rollout_id, signal)
    signals: list[Signal | None] = [None] * len(rollouts)
    for i, signal in zip(live, scored):
        signals[i] = signal
    write_signal(out, [r.rollout_id for r in rollouts], signals, views.prompt_ids)
    tokens = sum(len(rollouts[i].token_ids) for i in live)
    log_scores(rollouts, scored, tokens / max(seconds, 1e-9), out, session)
    return {"rollouts": len(rollouts), "scored": len(live), "without_context": views.num_without,
            "too_long": views.num_too_long, **counted("scores", {READ: tokens})}


def check_vocabulary(engine, vocabulary: int) -> None:
    """Student and teacher must name the same ids; padding of the matrices does not count."""
    own = getattr(engine, "vocabulary", None)
    if own is not None and own != vocabulary:
        raise TokenizerMismatch(f"the teacher names {own} token ids, the student {vocabulary}; "
                                "choose a teacher with the student's tokenizer")


def check_finite(rollout_id: str, signal: Signal) -> None:
    """Raises NonFinite naming the rollout and column."""
    for name in (*COLUMNS, "hidden"):
        column = getattr(signal, name)
        if column is not None and column.is_floating_point() and not torch.isfinite(column).all():
            bad = int((~torch.isfinite(column.reshape(len(column), -1)).all(-1)).nonzero()[0])
            raise NonFinite(f"the teacher's {name} of rollout {rollout_id} is not finite at token {bad}; "
                            "look at the teacher's weights, or use engine.dtype: float32")


def log_scores(rollouts: list[Rollout], scored: list[Signal], tokens_per_second: float, out: Path, session) -> None:
    """Metrics at the step of the rollouts' round, with which their ids begin."""
    values = {"score/tokens_per_second": tokens_per_second}
    sampled = [s.sampled for s in scored if s.sampled is not None]
    entropies = [s.entropy for s in scored if s.entropy is not None]
    if sum(map(len, sampled)):
        values["score/teacher_logprob_mean_nats"] = torch.cat(sampled).double().mean().item()
    if sum(map(len, entropies)):
        values["score/teacher_entropy_mean_nats"] = torch.cat(entropies).double().mean().item()
    first = rollouts[0].rollout_id.split(":")[0] if rollouts else ""
    session.log(out, int(first) if first.isdigit() else 0, values)


def write_signal(out: Path, rollout_ids: list[str], signals: list[Signal | None],
                 teacher_prompt_ids: list[list[int] | None]) -> None:
    """Write signal.parquet, and hidden.safetensors when there are hidden states. Float64 stays, all else is float32."""
    double = any(getattr(s, name) is not None and getattr(s, name).dtype == torch.float64
                 for s in signals if s is not None for name in COLUMNS)
    real, whole = pa.float64() if double else pa.float32(), pa.int32()
    table = {"rollout_id": pa.array(rollout_ids, pa.string()),
             "has_signal": pa.array([s is not None for s in signals], pa.bool_()),
             "teacher_prompt_ids": pa.array(teacher_prompt_ids, pa.list_(whole))}
    for name in COLUMNS:
        values = [getattr(s, name) if s is not None else None for s in signals]
        table[name] = pa.array([None if v is None else v.reshape(-1).numpy() for v in values],
                               pa.list_(whole if name == "ids" else real))
    pq.write_table(pa.table(table), out / "signal.parquet", compression="zstd", write_page_checksum=True)
    hidden = {i: s.hidden.contiguous() for i, s in zip(rollout_ids, signals) if s is not None and s.hidden is not None}
    if hidden:
        save_file(hidden, out / HIDDEN)


def read_signal(folder: Path) -> list[Signal | None]:
    """What `write_signal` wrote, in the rollouts' order. Raises CorruptArtifact where a file is damaged or missing."""
    file = promised(folder, HIDDEN)
    table = read_table(folder / "signal.parquet", ["rollout_id", "has_signal", "teacher_prompt_ids", *COLUMNS])
    hidden = read_hidden(file) if file else {}
    columns = {name: table[name] for name in COLUMNS}
    signals: list[Signal | None] = []
    for i, (rollout_id, has) in enumerate(zip(table["rollout_id"].to_pylist(), table["has_signal"].to_pylist())):
        found = {name: tensor_of(column[i]) for name, column in columns.items()} if has else {}
        if found.get("tail") is not None:  # [T * K] -> [T, K]
            num_tokens = len(found["tail"])
            width = len(found["ids"]) // num_tokens if num_tokens else 0
            found |= {name: found[name].reshape(num_tokens, width) for name in ("ids", "logprobs")}
            found["ids"] = found["ids"].long()
        signals.append(Signal(**found, hidden=hidden.get(rollout_id)) if has else None)
    return signals


def tensor_of(cell: pa.ListScalar) -> torch.Tensor | None:
    """A list cell as a tensor."""
    return torch.from_numpy(cell.values.to_numpy(zero_copy_only=False).copy()) if cell.is_valid else None


def read_hidden(path: Path) -> dict[str, torch.Tensor]:
    """Hidden states by rollout id. Raises CorruptArtifact when the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CorruptArtifact(f"{path} cannot be read as safetensors: {error}") from error
