"""`opd check` reads off a model's folder that it has no chat template; no model is loaded for it."""
import json

from tasks.opd.recipe import loading
from tasks.opd.recipe.checks import recipes


def test_a_folder_without_a_chat_template_is_noted_until_it_has_one(tmp_path):
    overrides = [f"pair={{name: mine, student: {{name: folder, path: {tmp_path}}}, teacher: random}}", "prompts=tiny",
                 "benchmarks=tiny"]

    def notes():
        return recipes.report(loading.load("opd_reverse_kl", overrides))["notes"]
    assert notes() == []                                        # nothing is there that could be read
    (tmp_path / "tokenizer_config.json").write_text("{}")
    note, = notes()
    assert note == f"pair.student: {tmp_path} has no chat template: questions are given as plain text"
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert notes() == []
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert notes() == []
