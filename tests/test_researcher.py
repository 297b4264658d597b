"""The way of a researcher, gone in a copy of this tree: a new weight, then a new column, each with its variant.

What README says of a new variant is what is done here, and nothing else; what others had made is still theirs.
"""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.one_round import TINY

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ["opd_reverse_kl", "tip"]
FADING = '''def fading(columns: Columns, *, half_life: Annotated[float, Field(gt=0)] = 64.0) -> Tensor:
    """One at the first token, half of that every `half_life` tokens: 2 ** -(position / half_life). [N]."""
    return 2.0 ** -(columns.position.float() / half_life)


'''
FADING_YAML = '''# Fading: reverse KL whose weight halves every 4 tokens.
defaults: ../base.yaml
name: opd_fading
about: {paper: "Somebody et al., 2026", arxiv: "2601.00000", idea: "the teacher counts less far from the prompt"}
terms:
  - support: full
    divergence: reverse_kl
    estimator: exact
    weights: [{name: fading, half_life: 4}]
'''
HESITANT = '''def hesitant(columns: Columns, *, nats: float = 1.0) -> Tensor:
    """One where the student's second choice is at most `nats` less likely than its first, zero elsewhere. [N]."""
    return scatter(columns, masked(columns, "margin") <= nats)


'''
MARGIN = '''def margin(term: Term, student: StudentTokens, models: dict[str, TeacherTokens]) -> Tensor:
    """How much likelier the student's first choice is than its second. [n] nats."""
    first, second = student.full.topk(2, -1).values.unbind(-1)
    return first - second


'''
HESITANT_YAML = FADING_YAML.replace("opd_fading", "opd_hesitant").replace(
    "{name: fading, half_life: 4}", "{name: hesitant, nats: 0.05}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what runs."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("tasks", "flows", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests/one_round.py", folder / "tests/one_round.py")
    return folder


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory):
    """`run(module, *arguments)` in the copy, which is the only tree it sees: what it prints last, as JSON."""
    home = tmp_path_factory.mktemp("home")

    def python(module, *arguments, expected=0):
        environment = {**os.environ, "OPD_HOME": str(home), "OPD_PROGRESS": "0", "PYTHONPATH": str(tree)}
        result = subprocess.run([sys.executable, "-m", module, *arguments], cwd=tree, env=environment, timeout=600,
                                capture_output=True, text=True)
        assert result.returncode == expected, result.stderr
        return json.loads(result.stdout.splitlines()[-1]) if expected == 0 else result.stderr
    return python


def edit(tree, file, old, new):
    """Replace what stands once in a file of the copy."""
    text = (tree / file).read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
    (tree / file).write_text(text.replace(old, new))


def test_a_weight_then_a_column_are_added_and_no_checkpoint_of_another_variant_is_remade(tree, run):
    before = run("tests.one_round", *OTHERS)
    assert [told["made"] > 0 for told in before.values()] == [True, True]
    weights = "tasks/opd/objective/weights.py"

    edit(tree, weights, 'WEIGHTS = {\n', FADING + 'WEIGHTS = {\n    "fading": Entry(fading),\n')
    (tree / "configs/variants/opd_fading.yaml").write_text(FADING_YAML)
    assert run("flows.cli", "check", "opd_fading", "--json", *TINY)["problems"] == []
    said = run("flows.cli", "check", "opd_fading", *TINY, "terms.0.weights.0.half_life=-1", expected=10)
    assert "half_life" in said and "greater than 0" in said
    with_weight = run("tests.one_round", *OTHERS, "opd_fading")
    assert_theirs_stand(before, with_weight)
    assert with_weight["opd_fading"]["made"] > 0

    edit(tree, weights, 'WEIGHTS = {\n',
         HESITANT + 'WEIGHTS = {\n    "hesitant": Entry(hesitant, needs=("margin",)),\n')
    edit(tree, "tasks/opd/objective/columns.py", "    candidates: Candidates | None #",
         "    margin: Tensor | None = None  # [N] nats, of the student's first choice over its second\n"
         "    candidates: Candidates | None #")
    edit(tree, "tasks/opd/training/prepass.py", 'COLUMNS = {"old_logprobs": written,',
         MARGIN + 'COLUMNS = {"margin": margin, "old_logprobs": written,')
    (tree / "configs/variants/opd_hesitant.yaml").write_text(HESITANT_YAML)
    assert run("flows.cli", "check", "opd_hesitant", "--json", *TINY)["problems"] == []
    with_column = run("tests.one_round", *OTHERS, "opd_fading", "opd_hesitant")
    assert_theirs_stand(with_weight, with_column)
    assert with_column["opd_hesitant"]["made"] > 0
    ends = [told["checkpoint"] for told in with_column.values()]
    assert len(set(ends)) == len(ends)


def assert_theirs_stand(before, after):
    """What variants had made is what they have now, and nothing of it was made again."""
    for name, told in before.items():
        assert after[name]["checkpoint"] == told["checkpoint"] and after[name]["made"] == 0, name
