"""What a tick does, by its new rows and drift."""
from tasks.opd.refresh.decision import SKIP, decide
from tasks.opd.refresh.drift import ALARM, REFRESH, Measure

OTHER_WORDS = Measure(name="words_js", value=0.4, limit=0.2, z=5.1, drifted=True, leads_to=ALARM)
OTHER_TEACHER = Measure(name="teacher_changed", value=1.0, limit=0.0, z=None, drifted=True, leads_to=REFRESH)
QUIET = Measure(name="words_js", value=0.1, limit=0.2, z=None, drifted=False, leads_to=ALARM)


def decided(new, *measures, at_least=10, old=0, accept=False):
    found = decide(new, at_least, measures, num_old=old, accept_drift=accept)
    return found.action, found.reason


def test_nothing_new_is_skipped_even_with_rows_that_wait():
    assert decided(0, QUIET, old=50) == (SKIP, "nothing new")


def test_too_few_new_rows_wait():
    assert decided(9) == (SKIP, "9 new prompts, 10 are wanted: they wait")
    assert decided(10, QUIET) == (REFRESH, "10 new prompts")


def test_drifted_prompts_alarm_until_somebody_accepts_it():
    action, reason = decided(50, OTHER_WORDS, OTHER_TEACHER)
    assert action == ALARM and reason.startswith("words_js 0.4, at most 0.2 (z 5.1); look at")
    assert decided(50, OTHER_WORDS, accept=True) == (REFRESH, "50 new prompts; words_js 0.4, at most 0.2 (z 5.1)")


def test_another_teacher_is_a_reason_without_new_prompts_where_there_are_old_ones():
    assert decided(0, OTHER_TEACHER, old=50) == (REFRESH, "teacher_changed 1, at most 0; 0 new prompts")
    assert decided(0, OTHER_TEACHER) == (SKIP, "nothing new")
