"""Small runs in a store, made by hand: every number that a page shows of them is known."""
import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models

from tasks.opd.core import metrics, token_columns
from tasks.opd.core.costs import READ, TRAINED, WRITTEN, counted
from tasks.opd.core.records import DATASET, STUDENT, Prompt, Quarantined, Rollout, Sample, write_rows
from tasks.opd.recipe import loading
from tasks.opd.store import artifacts, run_records
from tasks.opd.store.artifacts import Artifact

WORDS = ["<s>", " one", " two", " three", "</script>", "<img src=x onerror=alert(1)>", "\u202e", "\n", "<!--"]
NAN = float("nan")


def made(kind: str, name: str, write=lambda folder: None, *, counts=None, spec=None, seconds=1.0, **inputs) -> Artifact:
    """An artifact whose files `write` writes."""
    if found := artifacts.find(kind, name):
        return found
    folder = artifacts.begin(kind, name)
    write(folder)
    given = {key.replace("_of_", ":"): {"kind": one.kind, "fingerprint": one.fingerprint, "digest": one.digest}
             for key, one in inputs.items()}
    return artifacts.seal(folder, {"kind": kind, "fingerprint": name, "counts": counts or {}, "inputs": given,
                                   "spec": spec or {}, "seconds": seconds, "created": "2026-01-02T03:04:05+00:00"})


def write_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are WORDS."""
    (folder / "tokenizer").mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<s>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))


def prompts(name: str, count: int, text: str = "what is {}?", dropped: int = 0) -> Artifact:
    """Questions p:0, p:1 .. whose answer is their number."""
    rows = [Prompt(prompt_id=f"p:{i}", index=i, text=text.format(i), token_ids=[0, 1], answer=str(i), solution=None,
                   entry="{}", domain="") for i in range(count)]

    def write(folder: Path) -> None:
        write_rows(folder / "prompts.parquet", rows, Prompt)
        write_rows(folder / "quarantined.parquet", [Quarantined(item_id=f"q:{i}", reason="too long", text="long <b>")
                                                    for i in range(dropped)], Quarantined)
        write_tokenizer(folder)
    return made("prompts", name, write, counts={"prompts": count, "quarantined": dropped}, spec={"name": name})


def rollout(name: str, tokens: list[int], **changed) -> Rollout:
    """A rollout of prompt p:0 whose tokens the student wrote with log-probability -1 each."""
    return Rollout(**{"rollout_id": name, "prompt_id": "p:0", "group_id": "0:p:0", "domain": "", "policy":
                      ["s"] * len(tokens), "prompt_token_ids": [0, 1], "token_ids": tokens, "origin": "student",
                      "logprobs": [-1.0] * len(tokens), "author": [STUDENT] * len(tokens), "teacher_prompt_ids": None,
                      "parent": None, "finish_reason": "stop", "reward": 1.0, "feedback": "fine", **changed})


ROLLOUTS = [rollout("0:p:0:student:0", [1, 2, 3, 7, 1]), rollout("0:p:0:student:1", [4, 5, 6, 8], reward=0.0),
            rollout("0:p:0:dataset:0", [3, 3], logprobs=[NAN, NAN], author=[DATASET] * 2, origin="dataset")]


def signal(rows: list[Rollout], top: bool = False):
    """What writes signal.parquet: the teacher's log-probability is -1.5; with `top` two tokens and a tail beside it."""
    def write(folder: Path) -> None:
        lengths = [len(row.token_ids) for row in rows]
        columns = {"rollout_id": [row.rollout_id for row in rows], "has_signal": [True] * len(rows),
                   "teacher_prompt_ids": [[0, 1]] * len(rows), "sampled": [[-1.5] * n for n in lengths],
                   "ids": [[1, 4] * n if top else None for n in lengths],
                   "logprobs": [[-0.5, -1.5] * n if top else None for n in lengths],
                   "tail": [[-2.0] * n if top else None for n in lengths], "entropy": [None] * len(rows)}
        types = [pa.string(), pa.bool_(), *[pa.list_(pa.int32())], pa.list_(pa.float32()), pa.list_(pa.int32()),
                 *[pa.list_(pa.float32())] * 3]
        pq.write_table(pa.table([pa.array(values, kind) for values, kind in zip(columns.values(), types)],
                                names=[*columns]), folder / "signal.parquet")
    return write


def rows_file(rows: list, file: str = "rollouts.parquet", dropped: list[Quarantined] = (), gone: str = ""):
    """What writes rows and, where a file is named for them, those that were dropped."""
    def write(folder: Path) -> None:
        write_rows(folder / file, rows, Rollout)
        if gone:
            write_rows(folder / gone, [*dropped], Quarantined)
    return write


def round_of(key: str, index: int, student: Artifact, asked: Artifact, teacher: Artifact, *, trained: int = 100,
             rollouts: list[Rollout] = ROLLOUTS, refined: list[Rollout] = (), top: bool = False,
             values: dict[str, float] | None = None, wrote: dict[int, int] | None = None,
             asked_of: Artifact | None = None, used: list[token_columns.TokenColumns] = ()) -> Artifact:
    """A round's checkpoint: every stage takes a second; one rollout is dropped as it is graded.

    `used` is what terms took at tokens, `wrote` are tokens by author, `asked_of` is the student that the rollouts name;
    else the round's own wrote nine.
    """
    written = made("rollouts", f"r{key}", rows_file(rollouts, gone="quarantined.parquet"), prompts=asked,
                   student=asked_of or student, counts={"rollouts": len(rollouts), **counted(
                       "rollouts", {WRITTEN[author]: n for author, n in (wrote or {STUDENT: 9}).items()})})
    dropped = [Quarantined(item_id=f"{index}:x", reason="duplicate", text="again & again")]
    graded = made("grades", f"g{key}", rows_file(rollouts, dropped=dropped, gone="dropped.parquet"), rollouts=written)
    if refined:
        graded = made("refined", f"f{key}", rows_file(refined, gone="quarantined.parquet"), rollouts=graded,
                      counts=counted("refined", {}))
    scores = made("scores", f"s{key}", signal(refined or rollouts, top), rollouts=graded, model=teacher,
                  counts=counted("scores", {READ: 11}))

    def write(folder: Path) -> None:
        metrics.append(folder / metrics.FILE, 1, {"train/loss_nats": 1.0 / (index + 1), **(values or {})})
        if used:
            token_columns.write(folder / token_columns.FILE, [*used])
    return made("checkpoint", f"c{key}", write,
                spec={"round": index}, student=student, rollouts=graded, scores_of_teacher=scores,
                counts={**counted("checkpoint", {TRAINED: trained}), "steps": 1})


def report(key: str, student: Artifact, asked: Artifact, rewards: list[float], benchmark: str = "tiny", texts=(),
           reverse_kl: float = 0.5, passes: dict | None = None) -> tuple[Artifact, Artifact]:
    """Graded answers, one a prompt, and their divergence to the teacher."""
    texts = [*texts, *(f"answer {i}" for i in range(len(texts), len(rewards)))]
    rows = [Sample(benchmark=benchmark, prompt_id=f"p:{i}", sample_index=0, token_ids=[1], text=text, reward=reward,
                   feedback=None, finish_reason="stop") for i, (reward, text) in enumerate(zip(rewards, texts))]

    def write(folder: Path) -> None:
        write_rows(folder / "samples.parquet", rows, Sample)
        (folder / "report.json").write_text(json.dumps({
            "mean_reward": {row.prompt_id: row.reward for row in rows}, "template_sha256": "abcdef0123456789"}))
    written = made("report", f"e{key}", write, student=student, prompts=asked, spec={"benchmark": {"name": benchmark}},
                   counts={"avg": sum(rewards) / len(rewards), "prompts": len(rows), **(passes or {}),
                           **counted("report", {WRITTEN[STUDENT]: 5})})
    measured = made("divergence", f"d{key}", report=written, student=student,
                    counts={"reverse_kl_mean_nats": reverse_kl, "divergence_tokens": 5, **counted("divergence", {})})
    return written, measured


def run(variant: str = "gkd", seed: int = 0, suite: str = "", after: list[float] = (1, 1, 0, 1), rounds: int = 2,
        made_rounds: int | None = None, error: Exception | None = None, overrides: list[str] = (), **options) -> str:
    """A run of a variant, recorded; the start answers the first of four questions. Returns how its files are called.

    `options` are those of `round_of`, `texts` and `passes` of the last report, and `other`: whether there is a second
    benchmark, of which every answer was right before and one is after; `found` is what rules found.
    """
    last = {name: options.pop(name) for name in ("texts", "passes") if name in options}
    other, found = options.pop("other", False), options.pop("found", ())
    recipe = loading.load(variant, [f"rounds={rounds}", "benchmarks=tiny", *overrides]).model_copy(
        update={"seed": seed}).model_dump(mode="json")
    recipe["benchmarks"] += [{"name": "other"}] if other else []
    about = {"suite": suite, "recipe": recipe}
    start, teacher = made("model", "student"), made("model", "teacher")
    train, test = prompts("train", 3, dropped=1), prompts("test", 4)
    asked = [start, teacher, train, test, *report("start", start, test, [1, 0, 0, 0])]
    with contextlib.suppress(*[type(error)] if error else []):
        with run_records.recorded(f"{variant}-seed{seed}", **about):
            student = start
            for index in range(rounds if made_rounds is None else made_rounds):
                student = round_of(f"{variant}{seed}{index}", index, student, train, teacher, **options)
                asked.append(student)
            if not error:
                asked += report(f"{variant}{seed}", student, test, [*after], reverse_kl=0.25, **last)
            if other and not error:
                asked += report("other", start, test, [1, 1, 1, 1], "other")
                asked += report(f"other{variant}{seed}", student, test, [1, 0, 0, 0], "other")
            for one in asked:
                run_records.refer(one.kind, one.fingerprint)
            for text in found:
                run_records.note({"finding": {"rule": "loops", "rounds": 1, "text": text}})
            if error:
                raise error
    return run_records.stem_of(f"{variant}-seed{seed}", **about)
