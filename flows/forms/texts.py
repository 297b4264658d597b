"""What the page of a deployment says: its description in Markdown, and the tags that it is found by."""
import re

from flows.forms.fields import files
from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import catalogue, loading
from tasks.opd.recipe.schema import Recipe
from tasks.opd.recipe.suite import Suite

TAG = "opdlab"                  # of all that we register, so that we remove only what is ours


def families() -> dict[str, str]:
    """Variant -> family: the comment above it in the list of configs/suites/zoo.yaml, in words with hyphens."""
    family, found = "", {}
    for line in (loading.CONFIGS / "suites" / "zoo.yaml").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"  # (.+)", line):
            family = heading[1].strip().replace(" ", "-")
        elif entry := re.match(r"  - (\S+)", line):
            found[entry[1]] = family
    return found


def variant_text(recipe: Recipe, base: Recipe) -> str:
    """A variant's description: paper with link, idea, cost, placebo, what it says otherwise than base.yaml, file."""
    about, differs = recipe.about, catalogue.differs(recipe.model_dump(mode="json"), base.model_dump(mode="json"))
    link = f"[arXiv:{about.arxiv}](https://arxiv.org/abs/{about.arxiv})" if about.arxiv else ""
    guessed = "A value or formula was not found in the paper; the file says which." if about.reconstruction else ""
    lines = [", ".join(filter(None, (about.paper, link))), about.idea, guessed,
             f"**Cost** beyond vanilla on-policy distillation: {about.cost or 'none'}.",
             f"**Placebo**, which it must beat: {about.placebo}." if about.placebo else "",
             f"**Differs** from configs/base.yaml: {'; '.join(differs)}." if differs else "",
             f"File: `configs/variants/{recipe.name}.yaml`"]
    return "\n\n".join(filter(None, lines))


def suite_text(suite: Suite, file: str) -> str:
    """A suite's description: what is compared with what."""
    shown = ", ".join(suite.variants[:12]) + (f" and {len(suite.variants) - 12} more" if suite.variants[12:] else "")
    return "\n\n".join([
        f"{len(suite.variants)} variants, {len(suite.seeds)} seeds each: {shown}.",
        f"**Baseline**: {suite.baseline}. Differences are paired over the prompts of one benchmark.",
        f"**Sets**: {', '.join(suite.set) or 'nothing'}.", f"File: `configs/suites/{file}.yaml`"])


EVALUATION_TEXT = """Graded answers of a checkpoint, or of any model folder, on one benchmark.

**Cost**: one completion a question and sample; nothing is trained."""


def by_name(kind: str, load) -> tuple[dict, dict[str, str]]:
    """What `load` makes of the files of a folder in configs, and what is wrong with those that cannot be loaded."""
    loaded, refused = {}, {}
    for name in files(kind):
        try:
            loaded[name] = load(name)
        except RecipeError as error:
            refused[name] = str(error)
    return loaded, refused
