"""Which answers speak of what their prompt does not hold."""
import pytest

from tasks.opd.core.records import Prompt, Sample
from tasks.opd.evaluation.leakage import leakage, leaked


@pytest.mark.parametrize("answer, phrase", [
    ("According to the reference solution, x = 4.", "According to the reference"),
    ("As the provided solution says, 3 + 4 = 7.", "provided solution"),
    ("The solution above adds first.", "solution above"),
    ("Based on the text, Ada is 12.", "Based on the text"),
    ("I take the feedback into account: 7.", "the feedback"),
    ("In my first try I forgot the carry.", "my first try")])
def test_a_phrase_that_refers_to_more_than_the_question_leaks(answer, phrase):
    assert leaked(answer, "How much is 3 + 4?") == phrase


@pytest.mark.parametrize("answer", ["The answer is 7.", "The correct answer is 7, so the solution is x = 7.",
                                    "Given that 3 + 4 = 7, we are done.", "First, try 3. Then 4.", ""])
def test_what_answers_say_anyway_does_not_leak(answer):
    assert leaked(answer, "How much is 3 + 4?") is None


def test_what_the_question_itself_speaks_of_does_not_leak():
    assert leaked("Based on the text, 7.", "Based on the text below, how many figs?") is None


def test_the_share_is_of_all_answers():
    prompts = [Prompt(prompt_id=f"b:{i}", index=i, text="How many?", token_ids=[1], answer="7", solution=None,
                      entry="{}", domain="") for i in range(2)]
    texts = [("b:0", "As the provided answer says: 7"), ("b:0", "7"), ("b:1", "7"), ("b:1", "8")]
    samples = [Sample(benchmark="b", prompt_id=prompt_id, sample_index=0, token_ids=[1], text=text, reward=1.0,
                      feedback=None, finish_reason="stop") for prompt_id, text in texts]
    assert leakage(samples, prompts) == 0.25 and leakage([], prompts) == 0
