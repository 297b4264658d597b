"""What of a spec and of the source can change a result: edits of our own source, made on its text."""
from types import SimpleNamespace

import pytest

from tasks.opd.recipe import derivations, loading, requirements
from tasks.opd.recipe.schema import Engine, EngineInUse, Train
from tasks.opd.recipe.settings import effort_of
from tasks.opd.runtime.stages import STAGES, entry_of
from tasks.opd.store import closures, definitions
from tasks.opd.store.closures import source_hash

VARIANTS = ("opd_reverse_kl", "tip", "gkd", "grpo")


def dumped(slot):
    return slot.model_dump(mode="json")


def specs_of(recipe, refiners=("truncate",)):
    """The parts of each stage's spec that say what code it chooses, as its task writes them."""
    engine, terms = recipe.engine_for("write"), {"terms": requirements.terms_of(recipe)}
    grader = {"graders": recipe.graders()}
    filters = {"filters": [dumped(slot) for slot in recipe.rollout.filters]}
    return {"model": {"maker": dumped(recipe.pair.teacher)}, "context": {"context": dumped(recipe.teacher.context)},
            "prompts": {"source": dumped(recipe.prompts.source), "grader": dumped(recipe.prompts.grader)},
            "joined_prompts": {"sources": ["one", "another"]},
            "rollouts": {"writers": [dumped(writer) for writer in recipe.rollout.writers], "engine": engine},
            "grades": grader | filters,
            "refined": {**grader, "refiners": [{"name": name, "params": {}} for name in refiners], "engine": engine},
            "scores": {"context": dumped(recipe.teacher.context), "engine": engine}, "checkpoint": terms,
            "exposure": {"benchmarks": {"tiny": {"source": dumped(recipe.benchmarks[0].source)}}},
            "report": {"benchmark": dumped(recipe.benchmarks[0]), "engine": engine},
            "divergence": {"engine": recipe.engine_for("write") | {"name": "torch"}},
            "preflight": {**terms, **filters, "engine": engine, "scoring_engine": recipe.engine_for("score")}}


@pytest.fixture(scope="module")
def specs():
    """variant -> stage -> spec."""
    return {name: specs_of(loading.load(name)) for name in VARIANTS}


@pytest.fixture(scope="module")
def hashes():
    """`hashes(specs, module=(old, new), ..)`: source hash of every (variant, stage), with modules edited."""
    kept = {}

    def hash_all(specs, *edits, engines=()):
        edited = dict(kept)
        for module, old, new in edits:
            name = f"tasks.opd.{module}"
            text = edited.get(name) or definitions.source_file(name).read_text()
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {module}"
            edited[name] = text.replace(old, new)
        sources = {name: definitions.taken_apart(text, name) for name, text in edited.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(closures, "source_of", lambda name: sources.get(name) or definitions.source_of(name))
            source_hash.cache_clear()
            found = {(variant, stage): derivations.source_of(entry_of(stage), spec, engines)
                     for variant, stages in specs.items() for stage, spec in stages.items()}
        source_hash.cache_clear()
        return found
    return hash_all


@pytest.fixture(scope="module")
def changed(specs, hashes):
    """`changed((module, old, new), ..)`: the (variant, stage) whose source hash an edit changes."""
    before = hashes(specs)

    def compare(*edits):
        after = hashes(specs, *edits)
        return {cell for cell in before if before[cell] != after[cell]}
    return compare


def test_every_stage_has_a_closure(specs):
    assert set(specs["tip"]) == set(STAGES)


NEW_WEIGHT = ("objective.weights", '\n\nWEIGHTS = {\n', '''


def fading(columns: Columns, *, half_life: float = 64.0) -> Tensor:
    """One at the first token, half of that every `half_life` tokens. [N]."""
    return 2.0 ** -(columns.position.float() / half_life)


WEIGHTS = {
    "fading": Entry(fading),
''')
NEW_COLUMN = [("objective.columns", "    candidates: Candidates | None #", "    margin: Tensor | None = None\n"
               "    candidates: Candidates | None #"),
              ("training.prepass", '\n\nCOLUMNS = {"old_logprobs": written,', '''


def margin(term, student, models) -> Tensor:
    """How much likelier the student's first choice is than its second. [n] nats."""
    return student.full.topk(2, -1).values.diff(dim=-1).abs()[:, 0]


COLUMNS = {"margin": margin, "old_logprobs": written,''')]


def test_a_new_weight_and_a_new_column_change_no_stage(changed):
    assert changed(NEW_WEIGHT) == set()
    assert changed(NEW_WEIGHT, *NEW_COLUMN) == set()


def test_a_new_column_is_in_the_closure_of_who_reads_it(specs, hashes):
    term = specs["tip"]["checkpoint"]["terms"][0]
    reading = {"own": {"checkpoint": {"terms": [{**term, "weights": [{"name": "sure", "params": {}}],
                                                 "needs": ["margin"]}]}}}
    weight = ("objective.weights", 'WEIGHTS = {\n',
              'def sure(columns: Columns) -> Tensor:\n    return masked(columns, "margin")\n\n\n'
              'WEIGHTS = {\n    "sure": Entry(sure, needs=("margin",)),\n')
    before = hashes(reading, weight, *NEW_COLUMN)
    column = NEW_COLUMN[1]
    assert hashes(reading, weight, NEW_COLUMN[0], (*column[:2], column[2].replace("topk(2", "topk(3"))) != before
    assert hashes(reading, weight, (*NEW_COLUMN[0][:2], NEW_COLUMN[0][2].replace(" = None", " = NONE")),
                  column) != before


def cells(stages, variants=VARIANTS):
    return {(variant, stage) for variant in variants for stage in stages}


LEARNING = ("checkpoint", "preflight")
WITH_ENGINE = ("rollouts", "refined", "scores", "report", "divergence", "preflight")


@pytest.mark.parametrize("edit, expected", [
    (("objective.weights", "unsure + apart - unsure * apart", "unsure + apart"), cells(LEARNING, ["tip"])),
    (("objective.weights", "quantile(entropy, 0.98)", "quantile(entropy, 0.9)"), cells(LEARNING, ["tip"])),
    (("objective.statistics", "ROUNDING = 1e-9", "ROUNDING = 1e-8"), cells(LEARNING, ["tip"])),
    (("objective.weights", "(columns.position >= tokens)", "(columns.position > tokens)"), set()),
    (("objective.divergences", "def jsd(teacher_logprobs: Tensor", "def jsd(teacher_logprobs"),
     cells(LEARNING, ["gkd"])),
    (("objective.gaps", "return columns.teacher - columns.old_logprobs\n",
      "return columns.old_logprobs - columns.teacher\n"),
     cells(LEARNING, ["opd_reverse_kl"])),
    (("training.prepass", "return student.entropy\n", "return 2 * student.entropy\n"), cells(LEARNING, ["tip"])),
    (("training.forward", "kept = wanted[flat]", "kept = ~wanted[flat]"), cells(LEARNING)),
    (("objective.columns", "return self.lengths.numel()", "return len(self.lengths)"), cells(LEARNING)),
    (("training.trainer", 'COUNTERS = ("step",', 'COUNTERS = ("step", "x",'), cells(["checkpoint"])),
    (("rollouts.trd", "Write only the rewritten", "Write the rewritten"), set()),
    (("rollouts.writers", ") % 1.0", ") % 2.0"), cells(["rollouts"])),
    (("rollouts.filters", "if length > tokens else", "if length >= tokens else"), set()),
    (("rollouts.filters", '"stop") < 1', '"stop") < 2'), cells(["preflight"])),
    (("data.tiny", "LOWEST, HIGHEST = 10, 59", "LOWEST, HIGHEST = 10, 69"), cells(["model", "prompts", "exposure"]))])
def test_an_edit_changes_the_stages_whose_result_depends_on_it(changed, edit, expected):
    assert changed(edit) == expected


@pytest.mark.parametrize("edit", [
    ("engines.http.replicas", 'self.thread = threading.Thread(', 'self.thread = other.Thread('),
    ("engines.http.server_engine", "SPARE = 4", "SPARE = 5"),
    ("engines.http.server_engine", "above 0: it gives", "above 0; it gives"),
    ("engines.vllm_engine", "COLDEST, HOTTEST = 0.01, 2.0", "COLDEST, HOTTEST = 0.01, 3.0"),
    ("engines.pool", "return VllmEngine(folder, **options)", "return VllmEngine(folder, True, **options)"),
    ("makers.hub", "from huggingface_hub import errors, snapshot", "from hub import errors, snapshot"),
    ("core.progress", "REPORT_SECONDS = 1 ", "REPORT_SECONDS = 2 "),
    ("core.metrics", 'FILE = "metrics.jsonl"', 'FILE = "metric.jsonl"'),
    ("store.artifacts", 'raise CorruptArtifact(f"{artifact.path / RECORD} is missing")', "return")])
def test_what_is_not_chosen_and_what_only_reports_changes_no_stage(changed, edit):
    assert changed(edit) == set()


def test_the_engine_chosen_is_in_the_closure(changed, specs, hashes):
    assert changed(("engines.torch_engine", "promote_types(self.dtype, torch.float32)", "float32")) == \
        cells((*WITH_ENGINE, "model"))  # the tiny teacher's lessons end when an engine's answers are right
    on_vllm = {"vllm": specs_of(loading.load("opd_reverse_kl", ["engine.name=vllm"]), ["skd"])}
    edit = ("engines.vllm_engine", "COLDEST, HOTTEST = 0.01, 2.0", "COLDEST, HOTTEST = 0.01, 3.0")
    before, after = hashes(on_vllm), hashes(on_vllm, edit)
    assert {stage for (_, stage) in before if before["vllm", stage] != after["vllm", stage]} == \
        {*WITH_ENGINE} - {"divergence"}
    edit = ("engines.torch_engine", "torch.special.entr(", "torch.special.entropy(")
    after = hashes(on_vllm, edit)  # divergences to the teacher and skd's turns are torch's in any case
    assert {stage for (_, stage) in before if before["vllm", stage] != after["vllm", stage]} == \
        {"model", "divergence", "refined"}


def test_a_model_behind_a_server_brings_the_servers_engine(specs, hashes):
    edit, scores = ("engines.http.server_engine", "SPARE = 4", "SPARE = 5"), {"tip": {"scores": specs["tip"]["scores"]}}
    assert hashes(scores) == hashes(scores, edit)
    assert hashes(scores, engines={"server"}) != hashes(scores, edit, engines={"server"})


def test_effort_is_marked_in_the_schema_by_field():
    assert effort_of(Train) == {"micro_batch_tokens", "chunk_tokens", "share_prompts"}
    assert effort_of(Engine) == {"batch_tokens", "memory_share", "patience_seconds"}
    assert effort_of(EngineInUse, "batch") == {"batch_tokens"}


def test_base_yaml_marks_the_same_settings():
    lines = (loading.CONFIGS / "base.yaml").read_text().splitlines()
    marked = {line.split(":")[0].strip() for line in lines if "# (effort) " in line}
    assert marked == effort_of(Train) | effort_of(Engine)


def test_effort_is_outside_the_settings_that_count_by_its_place_and_not_by_its_name():
    engine = {"name": "torch", "dtype": "float32", "batch_tokens": 8, "memory_share": 0.4, "patience_seconds": 9,
              "lora_rank": 4, "longest_tokens": 99}
    weight = {"name": "w", "params": {"chunk_tokens": 3, "batch_tokens": 2, "effort": 1}}
    spec = {"seed": 1, "engine": engine, "scoring_engine": engine, "effort": {"micro_batch_tokens": 2, "cores": 2},
            "terms": [{"weights": [weight]}], "batch_tokens": 5}
    kept = {"name": "torch", "dtype": "float32"}
    assert derivations.result_settings(spec) == {
        "seed": 1, "engine": kept, "scoring_engine": kept, "terms": [{"weights": [weight]}], "batch_tokens": 5}
    assert spec["engine"] is engine and len(engine) == 7


@pytest.mark.parametrize("overrides, same", [
    (["engine.dtype=bfloat16"], False),                                 # auto: bfloat16 autocast
    (["train.autocast=bfloat16"], False),
    (["engine.dtype=bfloat16", "train.autocast='off'"], True), ([], True)])
def test_another_micro_batch_or_layout_is_another_checkpoint_only_under_bfloat16_autocast(monkeypatch, overrides, same):
    from tasks import train as door
    monkeypatch.setattr(door, "run_stage", lambda stage, spec, inputs, pool: spec)
    monkeypatch.setattr(door, "log_artifact", lambda spec, *_, **__: spec)
    models = {"student": SimpleNamespace(counts={"vocabulary": 20})}

    def spec(**changed):
        settings = [*overrides, *(f"train.{name}={value}" for name, value in changed.items())]
        recipe = loading.load("opd_reverse_kl", settings)
        return door.train_student.fn(recipe, models, models["student"], None, {}, None, 0)
    one, other, chunks = spec(micro_batch_tokens=512), spec(micro_batch_tokens=1024), spec(chunk_tokens=7)
    rows = spec(micro_batch_tokens=512, share_prompts="false")
    assert one["effort"] != other["effort"] and one["effort"] != rows["effort"]
    assert (derivations.result_settings(one) == derivations.result_settings(other)) == same
    assert (derivations.result_settings(one) == derivations.result_settings(rows)) == same
    assert derivations.result_settings(chunks) == derivations.result_settings(spec())


def test_what_is_held_at_once_is_halved():
    spec = {"engine": {"batch_tokens": 9, "memory_share": 0.4}, "effort": {"micro_batch_tokens": 8, "chunk_tokens": 1}}
    smaller, changes = derivations.halved(spec)
    assert smaller == {"engine": {"batch_tokens": 4, "memory_share": 0.4},
                       "effort": {"micro_batch_tokens": 4, "chunk_tokens": 1}}
    assert changes == {"engine.batch_tokens": "9 -> 4", "train.micro_batch_tokens": "8 -> 4"}


def test_a_spec_names_the_entries_it_chooses(specs):
    chosen = derivations.slots_chosen(specs["tip"]["checkpoint"])
    assert chosen["weight"] == {"keep_soft_or"} and chosen["divergence"] == {"reverse_kl"}
    assert chosen["advantage"] == set() and "writer" not in chosen
    assert derivations.slots_chosen(specs["grpo"]["grades"]) == {"grader": {"tiny"}, "filter": set()}
