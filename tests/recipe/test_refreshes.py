"""Refreshes load, complete; what is wrong is said at once, with its line."""
import pytest

from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import refreshes
from tasks.opd.recipe.loading import CONFIGS

SHIPPED = sorted(path.stem for path in (CONFIGS / "refreshes").glob("*.yaml"))
FILE = """name: mine
recipe: opd_reverse_kl
set: [pair=tiny]
prompts: {source: {name: jsonl, path: incoming}}
gate: {target: tiny}
"""


@pytest.fixture
def refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(text, overrides=()) -> list[str]:
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(RecipeError) as caught:
            refreshes.load("mine.yaml", overrides)
        return str(caught.value).splitlines()
    return refused


@pytest.mark.parametrize("name", SHIPPED)
def test_every_refresh_that_is_shipped_loads_and_fits_on_a_screen(name):
    ask = refreshes.load(name)
    assert ask.name == name and refreshes.recipe_of(ask).benchmarks
    assert len((CONFIGS / "refreshes" / f"{name}.yaml").read_text().splitlines()) <= 25


def test_a_refresh_is_shipped():
    assert "tiny_nightly" in SHIPPED


@pytest.mark.parametrize("change, told", [
    (("recipe: opd_reverse_kl", "recipe: opd_revers_kl"), ["no such file; did you mean opd_reverse_kl"]),
    (("name: mine", "nme: mine"), ["mine.yaml:1: nme", "did you mean name?"]),
    (("target: tiny", "target: gsm8k"), ['mine.yaml:5: gate.target = "gsm8k": not a benchmark of the recipe']),
    (("target: tiny", "target: tiny, retention: {tiny: 3}"), ["gate.retention.tiny = 3", "between 0 and below 1"]),
    (("target: tiny", "target: tiny, retention: {math: 0.1}"), ["gate.retention.math", "not a benchmark"]),
    (("target: tiny", "target: tiny, severity: {lenth: error}"), ["gate.severity.lenth", "did you mean length?"]),
    (("target: tiny", "target: tiny, severity: {length: fatal}"), ["gate.severity.length", "'error' or 'warning'"]),
    (("path: incoming", "pth: incoming"), ["mine.yaml:4: prompts.source.pth", "unknown parameter of jsonl"]),
    (("name: jsonl", "name: json"), ["prompts.source.name", "did you mean jsonl?"]),
    (("}}", "}, anchors: 99999}"), ["prompts.anchors", "leave no room", "5760"]),       # 45 rounds x 128
    (("set:", "schedule: {cron: 30 2}\nset:"), ["mine.yaml:3: schedule.cron", "must have five fields"]),
    (("set:", "schedule: {cron: 0 2 * * *, timezone: Berlin}\nset:"), ["schedule.timezone", "Europe/Berlin"]),
    (("set:", "schedule: {cron: 0 2 * * *, interval_seconds: 60}\nset:"), ["give one of cron, interval_seconds"]),
    (("set:", "approve: never\nset:"), ["approve", "'automatic' or 'manual'"]),
    (("[pair=tiny]", "[pair=tiny, rouns=3]"), ["did you mean rounds?"]),
])
def test_what_is_wrong_is_said_with_its_line(refused, change, told):
    assert change[0] in FILE
    lines = refused(FILE.replace(*change))
    assert all(any(part in line for line in lines) for part in told), lines


def test_all_that_is_wrong_is_said_at_once_and_an_override_is_named(refused):
    lines = refused(FILE.replace("target: tiny", "target: gsm8k"), ["schedule.cron=daily", "drift.z=-1"])
    assert len(lines) == 1 and "drift.z" in lines[0] and "override" in lines[0]
    lines = refused(FILE.replace("target: tiny", "target: gsm8k"), ["schedule.cron=daily"])
    assert len(lines) == 2


def test_a_recipe_must_leave_the_name_of_the_held_out_prompts_free(refused):
    taken = "{name: production, source: tiny, first: 90000, count: 9, max_prompt_tokens: 64, grader: tiny}"
    text = FILE.replace("tiny]", f"tiny, 'benchmarks=[{taken}]']").replace("target: tiny", "target: production")
    assert "rename it" in refused(text)[0]
