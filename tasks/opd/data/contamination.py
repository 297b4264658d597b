"""How much of a benchmark stands in what is trained on, by runs of words: questions that are known are no measure.

Words are compared without case and punctuation. A text shares what it has of runs of 13 words with the texts trained
on. One of fewer words is a single run, which a text of the same words has: inside a longer one it is not found. Runs
that stand in more than 10 of the texts are a template or an instruction, and tell nothing: they are left out.
Two shares are said of a benchmark: `overlapping_share`, the questions that share any run, and `contaminated_share`,
those of whose words 80 % and more lie in shared runs.
Source: 13 words, and any run: GPT-3, arXiv:2005.14165, appendix C; more than 10 texts: NeMo Curator's max_matches,
after it; 80 % of the words: Llama 2, arXiv:2307.09288, A.6.
"""
from collections import Counter
from collections.abc import Iterable

FILE = "contamination.json"             # beside a benchmark's prompts: what they share with those trained on
NGRAM = 13                              # words of a run
COMMON = 10                             # texts trained on, above which a run that stands in them tells nothing
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


def shared_shares(questions: list[str], trained: Iterable[str], ngram: int = NGRAM) -> list[float]:
    """Of each question the share of its words that lie in runs which stand in 1 to COMMON of the texts trained on."""
    asked = [grams(question, ngram) for question in questions]
    wanted = {gram for runs in asked for gram in runs}
    count = Counter(gram for text in trained for gram in wanted.intersection(grams(text, ngram)))
    return [covered(runs, [0 < count[gram] <= COMMON for gram in runs]) for runs in asked]


def covered(runs: list[Gram], shared: list[bool]) -> float:
    """The share of a text's words in shared ones of its runs, which begin at one word after the other."""
    if not runs:
        return 0.0
    inside = [False] * (len(runs) + len(runs[0]) - 1)
    for start, (run, is_shared) in enumerate(zip(runs, shared)):
        if is_shared:
            inside[start:start + len(run)] = [True] * len(run)
    return sum(inside) / len(inside)


def contamination(questions: dict[str, str], trained: Iterable[str]) -> dict:
    """Both shares of a benchmark's questions, given by id, and `examples`: the ids that share most, if any do."""
    shares = dict(zip(questions, shared_shares(list(questions.values()), trained)))
    number = max(len(shares), 1)
    known = sorted((name for name, share in shares.items() if share > 0), key=lambda name: -shares[name])
    return {"overlapping_share": len(known) / number, "examples": known[:EXAMPLES],
            "contaminated_share": sum(share >= MOST_SHARED for share in shares.values()) / number}
