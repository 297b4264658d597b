"""How much of a benchmark stands in what is trained on, by runs of words: questions that are known are no measure.

What is trained on is said to prompts: a prompt's question, its worked solution, completions of it, whoever wrote them.
Words are compared without case and punctuation. A text shares what it has of runs of 13 words with the texts trained
on. One of fewer words is a single run, which a text of the same words has: inside a longer one it is not found. Runs
that stand in what more than 10 prompts say are a template or an instruction, and tell nothing: they are left out.
Two shares are said of a benchmark: `overlapping_share`, the questions that share any run, and `contaminated_share`,
those of whose words 80 % and more lie in shared runs.
Source: 13 words, and any run: GPT-3, arXiv:2005.14165, appendix C; more than 10 texts: NeMo Curator's max_matches,
after it; 80 % of the words: Llama 2, arXiv:2307.09288, A.6.
"""
from collections import Counter, defaultdict
from collections.abc import Iterable

from tasks.opd.core.errors import DataError
from tasks.opd.core.records import Prompt
from tasks.opd.data.fields import all_said

FILE = "contamination.json"             # beside a benchmark's prompts: what they share with those trained on
NGRAM = 13                              # words of a run
COMMON = 10                             # prompts trained on, above which a run that stands in them tells nothing
MOST_SHARED = 0.8                       # of a question's words in shared runs, from which it counts as known
EXAMPLES = 3

Gram = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    words = ("".join(filter(str.isalnum, word)) for word in text.lower().split())
    return [word for word in words if word]


def grams(text: str, ngram: int) -> list[Gram]:
    """All runs of `ngram` words of a text; the whole text where it has fewer, nothing where it has none."""
    words = words_of(text)
    if len(words) <= ngram:
        return [tuple(words)] if words else []
    return [tuple(words[i:i + ngram]) for i in range(len(words) - ngram + 1)]


def contaminated(texts: dict[str, str], questions: list[str], ngram: int) -> dict[str, str]:
    """Texts that share a run of `ngram` words with a question, common or not: id -> question."""
    asked = {gram: question for question in questions for gram in grams(question, ngram)}
    shared = {text_id: next((asked[gram] for gram in grams(text, ngram) if gram in asked), None)
              for text_id, text in texts.items()}
    return {text_id: question for text_id, question in shared.items() if question is not None}


def prompts_with(wanted: set[Gram], said: Iterable[tuple[str, str]], ngram: int = NGRAM) -> Counter[Gram]:
    """In how many prompts each of the runs stands; `said` is (prompt id, text), with as many texts a prompt as it has.
    """
    held = defaultdict(set)
    for prompt_id, text in said:
        held[prompt_id] |= wanted.intersection(grams(text, ngram))
    return Counter(gram for runs in held.values() for gram in runs)


def shared_shares(questions: list[str], counts: Counter[Gram], ngram: int = NGRAM) -> list[float]:
    """Of each question the share of its words that lie in runs which stand in 1 to COMMON of the prompts trained on."""
    asked = [grams(question, ngram) for question in questions]
    return [covered(runs, [0 < counts[gram] <= COMMON for gram in runs]) for runs in asked]


def covered(runs: list[Gram], shared: list[bool]) -> float:
    """The share of a text's words in shared ones of its runs, which begin at one word after the other."""
    if not runs:
        return 0.0
    inside = [False] * (len(runs) + len(runs[0]) - 1)
    for start, (run, is_shared) in enumerate(zip(runs, shared)):
        if is_shared:
            inside[start:start + len(run)] = [True] * len(run)
    return sum(inside) / len(inside)


def contamination(benchmarks: dict[str, dict[str, str]], said: Iterable[tuple[str, str]]) -> dict[str, dict]:
    """Both shares of each benchmark's questions, given by id, and `examples`: the ids that share most, if any do.

    `said` is what is trained on, as (prompt id, text); it is read once.
    """
    wanted = {gram for questions in benchmarks.values() for text in questions.values() for gram in grams(text, NGRAM)}
    counts = prompts_with(wanted, said)
    return {name: summary(dict(zip(questions, shared_shares([*questions.values()], counts))))
            for name, questions in benchmarks.items()}


def summary(shares: dict[str, float]) -> dict:
    """What `contamination` says of a benchmark, of its questions' shares by id."""
    number = max(len(shares), 1)
    known = sorted((name for name, share in shares.items() if share > 0), key=lambda name: -shares[name])
    return {"overlapping_share": len(known) / number, "examples": known[:EXAMPLES],
            "contaminated_share": sum(share >= MOST_SHARED for share in shares.values()) / number}


def said_to(prompts: list[Prompt]) -> list[tuple[str, str]]:
    """What prompts themselves train on: their questions and, where they have them, worked solutions."""
    return [(prompt.prompt_id, text) for prompt in prompts
            for text in (all_said(prompt.turns, prompt.text), prompt.solution) if text]


def refuse(name: str, found: dict, example: str, limit: float) -> None:
    """Raise DataError when a larger share of a benchmark's questions is known by its words than its limit."""
    if found["contaminated_share"] > limit:
        raise DataError(f"{found['contaminated_share']:.0%} of the questions of {name} stand in what is trained on, "
                        f"but for a few words (limit max_contaminated {limit:g}), for example "
                        f"{', '.join(found['examples'])}: {example[:200]!r}. Train on other prompts or, where both are "
                        "made from one template on purpose, raise max_contaminated of the benchmark")
