"""Which prompts a round takes, who writes them, and what is written down; truncation as the first refiner."""
import math
from collections import Counter

import pytest

from tasks.opd.core import metrics
from tasks.opd.core.errors import DataError
from tasks.opd.core.records import DATASET, STUDENT, TEACHER, Prompt, Quarantined, Rollout, read_rows, write_rows
from tasks.opd.core.seeds import derive_seed
from tasks.opd.engines.pool import Session
from tasks.opd.rollouts.refiners import refine_rollouts
from tasks.opd.rollouts.writers import deal, deal_by_domain, labels, round_prompts, write_rollouts
from tests.small_llama import save_llama

IDS = [f"tiny:{i}" for i in range(10)]
ENGINE = {"name": "torch", "dtype": "float64", "batch_tokens": 65536}


@pytest.fixture(scope="module")
def session():
    with Session() as session:
        yield session


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Ten prompts of which the last is long, a student and a teacher, as artifacts lie."""
    home = tmp_path_factory.mktemp("artifacts")
    prompts = [Prompt(prompt_id=f"tiny:{i}", index=i, text=f"w{i}", token_ids=[5 + i, 6] * (30 if i == 9 else 1),
                      answer="", solution=f"w{20 + i} w3" if i != 4 else None, entry="{}", domain="tiny")
               for i in range(10)]
    (home / "prompts" / "p0").mkdir(parents=True)
    write_rows(home / "prompts" / "p0" / "prompts.parquet", prompts, Prompt)
    for seed, name in enumerate(("s0", "t0")):
        save_llama(home / "model" / name / "model", seed=seed)
    return {"prompts": home / "prompts" / "p0", "student": home / "model" / "s0", "teacher": home / "model" / "t0"}


def spec(*writers, **other):
    full = [{"params": {}, "n": 1, "fraction": 1.0, "when": "always", "domains": [], **writer} for writer in writers]
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 8}
    return {"writers": full, "sampling": sampling, "prompts_per_round": {"tiny": 4}, "round": 0, "seed": 7,
            "engine": ENGINE, "context_tokens": 32, **other}


def write(inputs, made, out, session):
    out.mkdir(parents=True, exist_ok=True)
    counts = write_rollouts(inputs, made, out, session)
    return counts, read_rows(out / "rollouts.parquet", Rollout), read_rows(out / "quarantined.parquet", Quarantined)


# ---- prompts and shares

def test_every_epoch_takes_every_prompt_once():
    stream = [i for r in range(20) for i in round_prompts(IDS, 4, r, seed=0)]  # 80 = 8 epochs
    assert [set(stream[k:k + 10]) for k in range(0, 80, 10)] == [set(IDS)] * 8
    assert len({tuple(stream[k:k + 10]) for k in range(0, 80, 10)}) == 8  # each in another order


def test_no_round_takes_a_prompt_twice():
    assert all(len(set(round_prompts(IDS, 7, r, seed))) == 7 for r in range(30) for seed in range(3))
    assert sorted(round_prompts(IDS, 25, 3, seed=0)) == IDS  # more wanted than there are


def test_fractions_are_exact_and_partition():
    ids = [str(i) for i in range(100)]
    first, second, everyone, third = deal(ids, [0.5, 0.25, 1.0, 0.25], 0, 0)
    assert (len(first), len(second), len(third)) == (50, 25, 25)
    assert set(first) | set(second) | set(third) == set(everyone) == set(ids)
    assert [len(share) for share in deal(ids[:7], [1 / 3] * 3, 0, 0)] == [2, 3, 2]
    assert deal(ids, [0.5], 0, 0) != deal(ids, [0.5], 0, 1)


def test_overlapping_fractions_wrap_around():
    first, second = deal(IDS, [0.7, 0.7], 0, 0)
    assert (len(first), len(second)) == (7, 7) and set(first) | set(second) == set(IDS)


# ---- the stage

def test_rollouts_say_who_wrote_what_from_which_seed(inputs, session, tmp_path):
    counts, rollouts, quarantined = write(inputs, spec({"name": "student", "n": 2}), tmp_path, session)
    assert [q.item_id for q in quarantined] == ["tiny:9"] and "60 tokens, room for 24" in quarantined[0].text
    assert counts["rollouts"] == len(rollouts) == 8 and counts["tokens"] == sum(len(r.token_ids) for r in rollouts)
    assert Counter(r.group_id for r in rollouts) == {f"0:{i}": 2 for i in {r.prompt_id for r in rollouts}}
    for r in rollouts:
        sample = int(r.rollout_id[-1])
        assert r.rollout_id == f"0:{r.prompt_id}:student:{sample}" and (set(r.policy), r.origin) == ({"s0"}, "student")
        alone = session.engine("student", inputs["student"] / "model", ENGINE).generate(
            [r.prompt_token_ids], spec()["sampling"], [derive_seed(7, 0, r.prompt_id, sample, "student")])[0]
        assert (alone.token_ids, alone.finish_reason) == (r.token_ids, r.finish_reason)
        assert r.logprobs == pytest.approx(alone.logprobs, abs=1e-9)


def test_the_stage_repeats_bitwise(inputs, session, tmp_path):
    made = spec({"name": "student", "fraction": 0.5}, {"name": "teacher", "fraction": 0.5})
    write(inputs, made, tmp_path / "a", session), write(inputs, made, tmp_path / "b", session)
    for file in ("rollouts.parquet", "quarantined.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_teacher_writes_at_its_own_temperature(inputs, session, tmp_path):
    made = spec({"name": "teacher", "params": {"temperature": 0.0}})
    _, rollouts, _ = write(inputs, made, tmp_path, session)
    assert {p for r in rollouts for p in r.policy} == {"t0"} and {a for r in rollouts for a in r.author} == {TEACHER}
    assert {lp for r in rollouts for lp in r.logprobs} == {0.0}  # greedy


def test_the_student_stops_after_so_many_tokens_or_a_share_of_the_limit_and_no_more_are_paid_for(
        inputs, session, tmp_path):
    counts, whole, _ = write(inputs, spec({"name": "student"}), tmp_path / "whole", session)
    limits = [({"tokens": 3}, 3), ({"share": 0.25}, 2), ({"share": 0.01}, 1), ({"tokens": 3, "share": 0.5}, 3)]
    for params, limit in limits:
        made = spec({"name": "student", "params": params})
        cut, rollouts, _ = write(inputs, made, tmp_path / str(params), session)
        assert [r.token_ids for r in rollouts] == [r.token_ids[:limit] for r in whole]
        assert cut["tokens"] == sum(min(limit, len(r.token_ids)) for r in whole) < counts["tokens"]
    for params in {"tokens": 8}, {"tokens": 100}, {"share": 1.0}, {"tokens": None, "share": None}:
        assert write(inputs, spec({"name": "student", "params": params}), tmp_path / "all", session)[1] == whole


def test_the_dataset_writer_copies_solutions_and_ends_them(inputs, session, tmp_path):
    made = spec({"name": "dataset"}, prompts_per_round={"tiny": 9})
    counts, rollouts, quarantined = write(inputs, made, tmp_path, session)
    assert {r.prompt_id: r.token_ids for r in rollouts}["tiny:3"] == [23, 3, 2]
    assert all(set(r.author) == {DATASET} and all(map(math.isnan, r.logprobs)) for r in rollouts)
    assert counts["rollouts"] == 8 and "0:tiny:4:dataset:0" in {q.item_id for q in quarantined}


def test_first_round_writers_are_silent_later(inputs, session, tmp_path):
    made = spec({"name": "student"}, {"name": "dataset", "when": "first_round"}, prompts_per_round={"tiny": 9})
    assert Counter(r.origin for r in write(inputs, made, tmp_path, session)[1]) == {"student": 9, "dataset": 8}
    later = write(inputs, {**made, "round": 1}, tmp_path, session)[1]
    assert Counter(r.origin for r in later) == {"student": 9}


def test_nothing_to_write_is_an_error_with_a_way_out(inputs, session, tmp_path):
    with pytest.raises(DataError, match="raise the one or lower the other"):
        write(inputs, spec({"name": "student"}, context_tokens=9), tmp_path, session)
    with pytest.raises(DataError, match="first_round"):
        write(inputs, spec({"name": "student", "when": "first_round"}, round=1), tmp_path, session)
    with pytest.raises(DataError, match="give it the input `teacher`"):
        without = {name: path for name, path in inputs.items() if name != "teacher"}
        write(without, spec({"name": "teacher"}), tmp_path, session)


def test_what_was_written_is_counted_by_author_kept_or_not(inputs, session, tmp_path):
    """A prompt of 2 tokens and its solution of 3 exceed a context of 4: 8 solutions are supplied, none is kept."""
    made = spec({"name": "student", "n": 2}, {"name": "dataset"}, prompts_per_round={"tiny": 9}, context_tokens=4)
    made["sampling"]["max_new_tokens"] = 1
    counts, rollouts, _ = write(inputs, made, tmp_path / "a", session)
    assert {r.origin for r in rollouts} == {"student"} and counts["tokens"] == 18
    written = {name: counts[f"{name}_written_tokens"] for name in ("student", "teacher", "dataset")}
    assert written == {"student": 9 * 2, "teacher": 0, "dataset": 8 * 3}
    counts, rollouts, _ = write(inputs, spec({"name": "teacher"}), tmp_path / "b", session)
    assert counts["teacher_written_tokens"] == sum(len(r.token_ids) for r in rollouts)
    assert counts["student_written_tokens"] == counts["dataset_written_tokens"] == 0


def test_two_writers_of_one_name_write_different_rollouts(inputs, session, tmp_path):
    assert labels(["student", "teacher", "student"]) == ["student", "teacher", "student.1"]
    rollouts = write(inputs, spec({"name": "student"}, {"name": "student"}), tmp_path, session)[1]
    assert len({r.rollout_id for r in rollouts}) == 8
    assert len({(r.prompt_id, *r.token_ids) for r in rollouts}) > 4


# ---- several sources

@pytest.fixture(scope="module")
def two_sources(inputs, tmp_path_factory):
    """The ten prompts, and four openings of plain text, the third of a document that goes on."""
    texts = [Prompt(prompt_id=f"notes:{i}", index=i, text=f"w{i}", token_ids=[30 + i], answer="", solution="w3 w4",
                    entry='{"ends": false}' if i == 2 else '{"ends": true}', domain="text") for i in range(4)]
    folder = tmp_path_factory.mktemp("two") / "p1"
    folder.mkdir()
    own = read_rows(inputs["prompts"] / "prompts.parquet", Prompt)
    write_rows(folder / "prompts.parquet", own + texts, Prompt)
    return inputs | {"prompts": folder}


def test_a_round_takes_so_many_prompts_of_each_source_and_writers_keep_to_their_domains(two_sources, session, tmp_path):
    made = spec({"name": "student", "domains": ["tiny"]}, {"name": "dataset", "domains": ["text"]},
                prompts_per_round={"tiny": 5, "notes": 4})
    rollouts = write(two_sources, made, tmp_path, session)[1]
    assert Counter((r.origin, r.domain) for r in rollouts) == {("student", "tiny"): 5, ("dataset", "text"): 4}
    by_prompt = {r.prompt_id: r for r in rollouts}
    assert (by_prompt["notes:0"].token_ids, by_prompt["notes:0"].finish_reason) == ([3, 4, 2], "stop")
    assert (by_prompt["notes:2"].token_ids, by_prompt["notes:2"].finish_reason) == ([3, 4], "length")


def test_a_further_source_changes_nothing_of_what_is_written_for_the_first(inputs, two_sources, session, tmp_path):
    alone = write(inputs, spec({"name": "student"}), tmp_path / "a", session)[1]
    beside = write(two_sources, spec({"name": "student"}, prompts_per_round={"tiny": 4, "notes": 2}), tmp_path / "b",
                   session)[1]
    assert {r.prompt_id for r in beside if r.domain == "tiny"} == {r.prompt_id for r in alone}
    assert sum(r.domain == "text" for r in beside) == 2


def test_writers_with_the_same_domains_share_them(two_sources):
    prompts = read_rows(two_sources["prompts"] / "prompts.parquet", Prompt)
    halves = [{"domains": ["tiny"], "fraction": 0.5}, {"domains": ["tiny"], "fraction": 0.5},
              {"domains": ["text"], "fraction": 1.0}, {"domains": [], "fraction": 1.0}]
    one, other, text, every = deal_by_domain(prompts, halves, 7, 0)
    assert len(one) == len(other) == 5 and sorted(one + other) == sorted(IDS)
    assert text == [f"notes:{i}" for i in range(4)] and every == [p.prompt_id for p in prompts]


# ---- refining

def test_truncate_cuts_long_completions_and_remembers_the_parent(inputs, session, tmp_path):
    before = write(inputs, spec({"name": "student"}, prompts_per_round={"tiny": 9}), tmp_path / "r", session)[1]
    (tmp_path / "out").mkdir()
    slots = [{"name": "truncate", "params": {"tokens": 6}}, {"name": "truncate", "params": {"tokens": 3}}]
    counts = refine_rollouts({**inputs, "rollouts": tmp_path / "r"},
                             {"refiners": slots, "engine": ENGINE, "round": 0, "seed": 7, "context_tokens": 32},
                             tmp_path / "out", session)
    after = read_rows(tmp_path / "out" / "rollouts.parquet", Rollout)
    for old, new in zip(before, after):
        assert new.token_ids == old.token_ids[:3] and new.logprobs == old.logprobs[:3]
        assert len(new.token_ids) == len(new.author)
        if len(old.token_ids) > 3:
            assert new.finish_reason == "length" and new.parent and new.parent.startswith(old.rollout_id)
        else:
            assert new == old
    assert counts["refined"] == sum(len(r.token_ids) > 3 for r in before) > 0


def test_what_several_refiners_tell_stands_under_their_names(inputs, session, tmp_path):
    write(inputs, spec({"name": "student"}, prompts_per_round={"tiny": 9}), tmp_path / "r", session)
    relay, skd = {"name": "relay", "params": {"k": 30, "within": 2}}, {"name": "skd", "params": {"k": 0}}

    def told(name, *refiners):
        (tmp_path / name).mkdir()
        counts = refine_rollouts({**inputs, "rollouts": tmp_path / "r"}, spec(refiners=list(refiners)),
                                 tmp_path / name, session)
        points = {point["key"]: point["value"] for point in metrics.read(tmp_path / name / metrics.FILE)}
        assert all(points[f"refine/{key}"] == value for key, value in counts.items() if "accepted" in key)
        theirs = sum(r.author.count(TEACHER) for r in read_rows(tmp_path / name / "rollouts.parquet", Rollout))
        assert counts["teacher_written_tokens"] == theirs  # of all refiners together
        return counts
    alone, both = told("alone", relay), told("both", relay, skd)
    own = {"accepted_share", "blocks_mean", "teacher_forward_tokens"}
    assert own < alone.keys() and both["teacher_written_tokens"] > alone["teacher_written_tokens"] > 0
    assert both["teacher_read_tokens"] > alone["teacher_read_tokens"] > 0
    assert {key: both[f"relay_{key}"] for key in own} == {key: alone[key] for key in own}
    assert both["skd_accepted_share"] == 0 and own.isdisjoint(both)   # k 0: of the untouched rollouts nothing stays
    again = told("again", relay, relay)
    assert {"relay_blocks_mean", "relay.1_blocks_mean"} < again.keys()


def test_a_mixtures_tokens_are_the_students_and_what_both_models_did_is_paid_for(inputs, session, tmp_path):
    counts, rollouts, _ = write(inputs, spec({"name": "mixture", "params": {"teacher_share": 0.4, "temperature": 1.0}}),
                                tmp_path, session)
    tokens = sum(len(r.token_ids) for r in rollouts)
    assert len(rollouts) == 4 and tokens > 4 and {a for r in rollouts for a in r.author} == {STUDENT}
    assert all(set(r.policy) == {"s0"} and r.origin == "mixture" and max(r.logprobs) < 0 for r in rollouts)
    assert (counts["student_written_tokens"], counts["teacher_written_tokens"]) == (tokens, 0)
    assert counts["teacher_read_tokens"] == tokens                    # the teacher's distribution at every one


# ---- what a budget leaves

@pytest.mark.parametrize("tokens", [1, 9, 20])
def test_rollouts_are_those_that_would_be_written_cut_where_the_budget_ends(inputs, session, tmp_path, tokens):
    _, whole, _ = write(inputs, spec({"name": "student", "n": 2}), tmp_path / "whole", session)
    most = {"tokens": tokens, "of": ["student_written_tokens"]}
    counts, found, _ = write(inputs, spec({"name": "student", "n": 2}, most=most), tmp_path / f"{tokens}", session)
    assert counts["student_written_tokens"] == counts["tokens"] == tokens < sum(len(r.token_ids) for r in whole)
    assert [r.rollout_id for r in found] == [r.rollout_id for r in whole[:len(found)]]
    assert [t for r in found for t in r.token_ids] == [t for r in whole for t in r.token_ids][:tokens]
    assert found[-1].finish_reason == "length" or len(found[-1].token_ids) == len(whole[len(found) - 1].token_ids)


def test_a_budget_of_what_the_teacher_writes_cuts_no_student_and_one_of_tokens_read_cuts_all(inputs, session, tmp_path):
    both = [{"name": "student"}, {"name": "dataset"}]
    _, whole, _ = write(inputs, spec(*both), tmp_path / "whole", session)
    other = {"tokens": 1, "of": ["teacher_written_tokens"]}
    _, found, _ = write(inputs, spec(*both, most=other), tmp_path / "other", session)
    assert [r.token_ids for r in found] == [r.token_ids for r in whole]
    own = sum(len(r.token_ids) for r in whole if r.origin == "student")
    read = {"tokens": own + 4, "of": ["dataset_written_tokens", "student_written_tokens"]}    # 2 words and eos, then 1
    _, found, _ = write(inputs, spec(*both, most=read), tmp_path / "read", session)
    assert [len(r.token_ids) for r in found if r.origin == "dataset"] == [3, 1]
    assert sum(len(r.token_ids) for r in found) == own + 4
