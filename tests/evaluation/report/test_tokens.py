"""Rollouts token by token: spelling, columns that the store has, what was refined."""
import pytest

from tasks.opd.core.records import STUDENT, TEACHER
from tasks.opd.core.token_columns import COUNT, TokenColumns, evenly
from tasks.opd.evaluation.report import lineage, tokens
from tasks.opd.evaluation.report.tokens import Pieces
from tasks.opd.store import run_records
from tests.evaluation.report.made_runs import ROLLOUTS, rollout, run


def shown(most_tokens: int = 100, pieces: Pieces | None = None, **options) -> tuple[list[tokens.Shown], list[str]]:
    rounds = lineage.read(run_records.files_of(run(**options))[0]).rounds
    pieces = pieces or Pieces(decode=tokens.decoder(tokens.prompts_of(rounds[0])))
    return tokens.shown_of(rounds[:1], pieces, most_tokens, 5), pieces.texts


def test_a_token_has_its_spelling_author_log_probabilities_and_gap():
    [first, second, third], pieces = shown()
    assert [pieces[i] for i in first.tokens] == [" one", " two", " three", "\n", " one"] and first.tokens[0] == 0
    assert (first.student, first.author) == ([-1.0] * 5, [0] * 5)
    assert (first.said[0].model, first.said[0].gap, first.said[0].top) == ("teacher", [-0.5] * 5, [])
    assert (first.prompt, first.question, first.round) == ("<s> one", "what is 0?", 1)
    assert [pieces[i] for i in second.tokens][:2] == ["</script>", "<img src=x onerror=alert(1)>"]
    assert third.student == [None, None] and third.said[0].gap == [None, None]


def test_a_token_that_the_teacher_wrote_has_no_log_probability_of_the_students():
    mixed = rollout("0:p:0:student:0:skd", [1, 2], author=[STUDENT, TEACHER], logprobs=[-1.0, -0.25])
    [first], _ = shown(rollouts=[mixed])
    assert first.student == [-1.0, None] and first.said[0].gap == [-0.5, None]


def test_the_teachers_likeliest_and_the_tail_are_there_where_they_were_kept():
    [first, *_], pieces = shown(top=True)
    assert [[pieces[i] for i in some] for some in first.said[0].top][0] == [" one", "</script>"]
    assert (first.said[0].top_logprobs[0], first.said[0].tail[0]) == ([-0.5, -1.5], -2.0)


def test_a_long_rollout_is_cut_in_every_column():
    [first, *_], _ = shown(most_tokens=2, top=True)
    said = first.said[0]
    assert [*map(len, (first.tokens, first.student, first.author, said.gap, said.top, said.tail))] == [2] * 6
    assert first.left_out == 3


def test_a_rollout_that_is_trimmed_is_as_if_it_had_been_cut():
    pieces = Pieces(decode=lambda ids: "".join(map(str, ids)))
    [whole, *_], _ = shown(pieces=pieces, top=True, used=USED)
    [cut, *_], _ = shown(most_tokens=2, pieces=pieces, top=True, used=USED)
    assert tokens.trimmed(whole, 2, 5) == cut
    less = tokens.trimmed(whole, 3, 1).said[0]
    assert [len(some) for some in less.top] == [1] * 3 == [len(some) for some in less.top_logprobs]
    assert tokens.trimmed(whole, 3, 0).said[0].top == []


USED = [TokenColumns(rollout_id="0:p:0:student:0", term="teacher_gap", weight=[0.00123456, 0, 1, 1, 1],
                     advantage=[float("nan"), -2.0, 0.5, 1.0, 1.0]),
        TokenColumns(rollout_id="0:p:0:student:0", term="nll", weight=[1.0] * 5, advantage=None),
        TokenColumns(rollout_id="0:p:0:student:1", term="nll", weight=[1.0] * 4, advantage=None)]


def test_what_training_took_stands_at_the_tokens_to_three_digits():
    [first, second, third], _ = shown(used=USED, most_tokens=3)
    assert first.used == [tokens.Used(term="teacher_gap", weight=[0.00123, 0, 1], advantage=[None, -2.0, 0.5]),
                          tokens.Used(term="nll", weight=[1.0] * 3, advantage=[])]
    assert [one.term for one in second.used] == ["nll"] and third.used == []


def test_of_several_rounds_those_rollouts_are_shown_of_which_tokens_were_kept():
    many = [rollout(f"0:p:0:student:{i}", [1]) for i in range(100)]
    rounds = lineage.read(run_records.files_of(run(rounds=3, rollouts=many))[0]).rounds
    found = tokens.shown_of(rounds, Pieces(decode=str), 10, 0)
    kept = {row.rollout_id for row in evenly(many, COUNT)}
    assert len(found) == 40 and {one.rollout_id for one in found} <= kept


def test_a_refined_rollout_has_what_it_was_before():
    refined = [rollout("0:p:0:student:1:trd", [1, 2], parent="0:p:0:student:1"), ROLLOUTS[0]]
    [first, second], _ = shown(refined=refined)
    assert first.raw == "</script><img src=x onerror=alert(1)>\u202e<!--" and first.raw_reward == 0.0
    assert second.raw is None


@pytest.mark.parametrize(("value", "shown"), [(-0.001, 0.0), (-1.234, -1.23), (float("nan"), None),
                                              (float("-inf"), None)], ids=str)
def test_numbers_are_rounded_and_what_is_not_finite_is_left_out(value, shown):
    assert tokens.number(value) == shown and str(tokens.number(-0.001)) == "0.0"


def test_characters_of_several_tokens_stand_whole_with_their_last():
    parts = {1: b"\xc3", 2: b"\xa9", 3: b"e", 4: b"\xf0", 5: b"\x9f\x98", 6: b"\x80"}
    pieces = Pieces(decode=lambda ids: b"".join(parts[i] for i in ids).decode(errors="replace"))
    ids = [3, 1, 2, 4, 5, 6, 3]
    assert [pieces.texts[i] for i in pieces.spelt(ids)] == ["e", "", "\u00e9", "", "", "\U0001f600", "e"]


def test_bytes_that_are_no_character_are_not_waited_for_for_ever():
    pieces = Pieces(decode=lambda ids: b"".join([b"\xff", b"a"][i] for i in ids).decode(errors="replace"))
    spelt = [pieces.texts[i] for i in pieces.spelt([0] * 9 + [1])]
    assert "".join(spelt).endswith("a") and len("".join(spelt)) >= 9


@pytest.mark.parametrize(("count", "wanted", "expected"), [(1, None, [1]), (2, None, [1, 2]), (20, None, [1, 11, 20]),
                                                           (20, [2, 3], [2, 3]), (0, None, [])], ids=str)
def test_the_first_the_middle_and_the_last_round_are_chosen(count, wanted, expected):
    rounds = [lineage.Round(index=i, checkpoint=None, stages=[], trained_tokens=0, seconds=0) for i in range(count)]
    assert [one.index + 1 for one in tokens.chosen_rounds(rounds, wanted)] == expected


def test_at_most_forty_rollouts_are_shown_evenly_spaced():
    many = [rollout(f"0:p:0:student:{i}", [1]) for i in range(100)]
    [*found], _ = shown(rollouts=many)
    assert len(found) == 40 and found[1].rollout_id.endswith(":2") and found[-1].rollout_id.endswith(":97")
