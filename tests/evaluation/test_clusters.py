"""Which prompts are kin, and that a suite's table counts them."""
import json
from collections import defaultdict

import pytest

from tasks.opd.core.records import Prompt, write_rows
from tasks.opd.data.sources import reasoning_gym
from tasks.opd.evaluation.clusters import cluster_of, clusters_of
from tasks.opd.store import artifacts


def prompt(number: int = 0, text: str = "How many?", entry: object = None, history: str = "") -> Prompt:
    return Prompt(prompt_id=f"p:{number}", index=number, text=text, token_ids=[1], answer="1", solution=None,
                  entry=json.dumps(entry or {}), domain="", history=history)


def test_a_generated_question_belongs_to_its_template():
    import reasoning_gym as gym
    asked = [prompt(i, item["text"], item["entry"]) for i, item in enumerate(reasoning_gym(range(300)))]
    truth = gym.create_dataset("gsm_symbolic", seed=0, size=300).task_indices        # which of its templates wrote it
    found = defaultdict(set)
    for one, template in zip(asked, truth, strict=True):
        found[cluster_of(one)].add(template)
    assert len(found) == len(set(truth)) > 70 and all(len(templates) == 1 for templates in found.values())


@pytest.mark.parametrize("entry", [{}, [], {"cluster": None}, {"metadata": {"variables": {}}}, {"metadata": "none"}])
def test_other_questions_are_their_own_and_the_same_one_is_one(entry):
    alone, again, other = prompt(0, "How  many?", entry), prompt(1, "how many?", entry), prompt(2, "Why?", entry)
    assert cluster_of(alone) == cluster_of(again) != cluster_of(other)
    said = prompt(3, "how many?", entry, history=json.dumps([{"role": "user", "content": "Eggs."}]))
    assert cluster_of(said) != cluster_of(alone)


def test_what_a_row_states_counts():
    first, second, third = (prompt(i, str(i), {"cluster": cluster}) for i, cluster in enumerate((7, 7, "7")))
    assert cluster_of(first) == cluster_of(second) != cluster_of(third)


def test_clusters_are_read_from_the_prompts_that_a_report_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_HOME", str(tmp_path))

    def sealed(kind: str, inputs: dict, rows: list[Prompt]) -> artifacts.Artifact:
        folder = artifacts.begin(kind, "f")
        write_rows(folder / "prompts.parquet", rows, Prompt)
        return artifacts.seal(folder, {"kind": kind, "fingerprint": "f", "counts": {}, "inputs": inputs, "seconds": 1})
    asked = sealed("prompts", {}, [prompt(0, "a", {"cluster": 1}), prompt(1, "b", {"cluster": 1}), prompt(2, "c")])
    found = clusters_of(sealed("report", {"prompts": asked.to_json()}, []))
    assert found["p:0"] == found["p:1"] != found["p:2"] and len(found) == 3
