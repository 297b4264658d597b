"""Recipes load, compose and override; what is wrong is said at once, with its line, in these words."""
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import loading, slots
from tasks.opd.recipe.schema import Recipe, Slot
from tasks.opd.recipe.suite import Suite
from tasks.opd.recipe.validation import models_in

CONFIGS = loading.CONFIGS
VARIANTS = sorted(p.stem for p in (CONFIGS / "variants").glob("*.yaml"))
PAIRS = sorted(p.stem for p in (CONFIGS / "pairs").glob("*.yaml"))
BASE = CONFIGS / "base.yaml"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "v.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("BASE", str(BASE)))
        return path
    return write


def errors(path, overrides=()) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loading.load(path, overrides)
    assert caught.value.exit_code == 10
    return str(caught.value).splitlines()


def lacks(variant: str, pair: str) -> list[str]:
    """The models that a variant asks for by a role which the pair does not fill."""
    text = (CONFIGS / "variants" / f"{variant}.yaml").read_text() if variant in VARIANTS else ""
    models = (CONFIGS / "pairs" / f"{pair}.yaml").read_text()
    roles = {"reference: teacher_start": "teacher_start:", "model: routed": "experts:", "model: mixed": "experts:"}
    return [role for said, role in roles.items() if said in text and role not in models]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("variant", [*VARIANTS, str(BASE)])
def test_every_variant_loads_on_every_pair_that_has_its_models_and_is_refused_on_others(variant, pair):
    if lacks(variant, pair):
        refused, = errors(variant, [f"pair={pair}"])
        assert f"pair {pair}" in refused and "pair." in refused
        return
    recipe = loading.load(variant, [f"pair={pair}"])
    assert recipe.pair.name == pair
    assert recipe.name == (variant if variant in VARIANTS else "base")
    assert recipe.benchmarks and recipe.prompts.count >= recipe.rollout.prompts_per_round


@pytest.mark.parametrize("suite", sorted(p.stem for p in (CONFIGS / "suites").glob("*.yaml")))
def test_every_suite_loads(suite):
    loaded, cells = loading.load_suite(suite)
    assert [(v, s) for v, s, _ in cells] == [(v, s) for v in loaded.variants for s in loaded.seeds]
    assert all(recipe.seed == seed and recipe.name == variant for variant, seed, recipe in cells)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_short_and_says_where_it_comes_from(variant):
    text = (CONFIGS / "variants" / f"{variant}.yaml").read_text()
    about = loading.load(variant).about
    assert len(text.splitlines()) <= 25
    assert text.startswith("# ") and about.paper and about.idea
    assert about.arxiv in text.split("defaults:")[0] or variant == "sft"
    assert not about.arxiv or re.fullmatch(r"\d{4}\.\d{5}|\d{4}\.\d{4}", about.arxiv)


def test_yaml_lines_are_at_most_120_wide():
    wide = [f"{path}:{number}" for path in CONFIGS.rglob("*.yaml")
            for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120]
    assert wide == []


def example() -> dict:
    return yaml.safe_load("\n".join(line[2:] for line in BASE.read_text().splitlines() if line.startswith("#|")))


def keys_missing(model: type[BaseModel], *data) -> list[str]:
    """Fields of a model that none of the mappings has, below them too."""
    missing = []
    for name, field in model.model_fields.items():
        values = [d[name] for d in data if isinstance(d, dict) and name in d]
        values = [item for v in values for item in (v if isinstance(v, list) else [v])]
        inner = [m for m in models_in(field.annotation) if not issubclass(m, Slot) or m in slots.MODELS.values()]
        has = any(name in d for d in data if isinstance(d, dict))
        missing += [] if has else [name]
        for m in inner if has else []:
            missing += [f"{name}.{key}" for key in keys_missing(m, *values) if key != "params"]
    return missing


def test_base_documents_every_setting_and_its_values_are_the_defaults():
    base = yaml.safe_load(BASE.read_text())
    assert keys_missing(Recipe, base, example()) == []
    shown = loading.load(BASE)
    same = ("about", "refine", "teacher", "loss", "schedule", "workers", "accepts", "keep_hidden")
    assert {name: getattr(shown, name) for name in same} == {name: Recipe.model_fields[name].default for name in same}
    rollout = Recipe.model_fields["rollout"].default  # loaded, the writer's own parameters are written out
    assert type(rollout).model_validate(base["rollout"]) == rollout
    for name in ("train", "engine"):  # the tiny pair's file changes these, so they are compared as written
        assert base[name] == Recipe.model_fields[name].default.model_dump()


def test_the_examples_in_base_are_valid(write):
    given = {"name": "example", "rounds": 50, "rollout": {"prompts_per_round": 8}}
    text = "defaults: BASE\n" + yaml.safe_dump(example() | given)
    recipe = loading.load(write(text))
    # the pair's own mapping stands; tiny's file is not read, so neither are its prompts
    assert recipe.pair.name == "two_of_a_kind" and recipe.prompts.name == "my_questions"
    assert [b.name for b in recipe.benchmarks] == ["my_held_out"]
    past = [{"set": {}, "metrics": {"train/reverse_kl/loss_mean": 0.05}}] * 49
    assert [recipe.at(i, past).train.learning_rate for i in (24, 25, 39, 40)] == [1e-5, 1e-6, 1e-6, 1e-7]
    assert recipe.at(1, past).terms[0].coefficient == 1.0  # the metric is on target


def test_later_wins_base_variant_pair_group_command_line(write):
    write("pair: {name: p, student: tiny_student, teacher: tiny_teacher}\nprompts: tiny\nbenchmarks: tiny\n"
          "train: {learning_rate: 0.1, beta1: 0.5}\n", "pairs/p.yaml")
    path = write("defaults: BASE\nname: v\npair: p\ntrain: {learning_rate: 0.2, warmup_steps: 3}\n", "variants/v.yaml")
    train = loading.load(path, ["train.beta1=0.6"]).train
    assert (train.learning_rate, train.warmup_steps, train.beta1, train.beta2) == (0.1, 3, 0.6, 0.95)


def test_prompts_of_the_variant_stand_against_those_of_the_pair(write):
    path = write("defaults: BASE\nname: v\npair: smollm2_self\nprompts: gsm8k\n")
    assert loading.load(path).prompts.name == "gsm8k"
    assert loading.load(path, ["prompts=gsm_symbolic"]).prompts.name == "gsm_symbolic"
    assert loading.load("gkd", ["pair=smollm2_pruned"]).prompts.name == "gsm_symbolic"


def test_several_benchmarks_by_name(write):
    names = ["pair=tiny", "benchmarks=gsm8k,math500", "pair.context_tokens=32768"]
    assert [b.name for b in loading.load("gkd", names).benchmarks] == ["gsm8k", "math500"]
    assert loading.load("gkd", [*names, "benchmarks.1.samples=8"]).benchmarks[1].samples == 8
    assert [b.name for b in loading.load("gkd", ["benchmarks=[tiny]"]).benchmarks] == ["tiny"]
    assert loading.load("gkd", ["benchmarks=[]"]).benchmarks == []
    assert loading.load(write("defaults: BASE\nname: v\nbenchmarks: []\n")).benchmarks == []


def test_an_override_reaches_into_lists_and_a_slot_of_another_name_replaces_the_first():
    recipe = loading.load("gkd", ["terms.0.divergence.beta=0.3", "terms.0.weights=[{name: skip_first, tokens: 2}]"])
    assert recipe.terms[0].divergence == Slot(name="jsd", params={"beta": 0.3})
    assert recipe.terms[0].weights == [Slot(name="skip_first", params={"tokens": 2})]
    assert loading.load("gkd", ["terms.0.divergence.name=reverse_kl"]).terms[0].divergence == Slot(name="reverse_kl")
    assert loading.load("gkd", ["teacher={model: self, refresh: ema}", "teacher.refresh.decay=0.5"]).teacher.refresh \
        == Slot(name="ema", params={"decay": 0.5})


def test_defaults_of_slots_are_written_out():
    assert loading.load("opd_jsd", ["terms.0.divergence=jsd"]).terms[0].divergence.params == {"beta": 0.5}


def test_references_to_other_keys_are_filled_in(write):
    path = write("defaults: BASE\nname: v\nloss: {temperature: 1.5}\n"
                 "rollout: {sampling: {temperature: '${loss.temperature}'}}\n")
    assert loading.load(path).rollout.sampling.temperature == 1.5


def test_provenance_names_the_line_or_override(write):
    path = write("defaults: BASE\nname: v\ntrain:\n  beta1: 0.5\n")
    sources = loading.provenance(path, ["seed=3"])
    assert sources["train.beta1"] == "v.yaml:4"
    assert sources["seed"] == "override 'seed=3'"
    assert sources["pair.context_tokens"].endswith("configs/pairs/tiny.yaml:14")
    assert sources["train.beta2"].startswith(str(BASE) + ":")


def test_all_errors_of_a_file_and_the_command_line_come_at_once(write):
    path = write("defaults: BASE\n"
                 "name: v\n"
                 "learnign_rate: 1\n"
                 "seed: many\n"
                 "terms:\n"
                 "  - rows: all\n"
                 "    support: full\n"
                 "    divergence: {name: jsd, beat: 0.5}\n"
                 "rollout:\n"
                 "  writers: [studnet]\n")
    got = errors(path, ["train.beta1=1", "nonsense", "terms.3.rows=all"])
    assert got[:2] == ["override 'nonsense': must be key=value, for example train.learning_rate=1e-5",
                       "override 'terms.3.rows=all': terms.3: no such entry; terms has 1, counted from 0"]
    assert set(got[2:]) == {
        "v.yaml:3: learnign_rate = 1: unknown key; did you mean train.learning_rate? known: "
        + ", ".join(Recipe.model_fields),
        'v.yaml:4: seed = "many": must be a valid integer',
        "override 'train.beta1=1': train.beta1 = 1: must be less than 1",
        'v.yaml:10: rollout.writers.0 = "studnet": unknown writer; did you mean student? '
        "known: student, teacher, dataset, mixture",
        "v.yaml:8: terms.0.divergence.beat = 0.5: unknown parameter of jsd; did you mean beta? known: beta"}


def test_a_commit_that_yaml_reads_as_a_number_is_to_be_quoted():
    teacher = "pair.teacher={name: hub, model: a/b, revision: %s}"
    with pytest.raises(RecipeError, match=r"pair\.teacher\.revision = .*: must be a valid string; quote it"):
        loading.load("opd_reverse_kl", [teacher % "12e4567"])
    loading.load("opd_reverse_kl", [teacher % "'12e4567'"])


@pytest.mark.parametrize("line, message", [
    ("train: {learnign_rate: 1}", "v.yaml:3: train.learnign_rate = 1: unknown key; did you mean learning_rate?"),
    ("seed: true", "v.yaml:3: seed = true: must be a valid integer"),
    ("seed: '1'", 'v.yaml:3: seed = "1": must be a valid integer'),
    ("seed: -1", "v.yaml:3: seed = -1: must be greater than or equal to 0"),
    ("teacher: 3", "v.yaml:3: teacher = 3: must be a mapping"),
    ("teacher: {context: [same]}", 'v.yaml:3: teacher.context = ["same"]: must be a name, or a mapping with a name'),
    ("about: {arxiv: 2306.13649}", "v.yaml:3: about.arxiv = 2306.13649: must be a valid string; quote it"),
    ("engine: {name: vlm}", "v.yaml:3: engine.name = \"vlm\": must be 'torch' or 'vllm'"),
    ("terms: [{divergence: nll, advantage: grpo}]",
     "v.yaml:3: terms.0: a term has either a divergence or an advantage: give exactly one of them"),
    ("terms: [{rows: al, divergence: nll}]",
     'v.yaml:3: terms.0.rows = "al": unknown rows; did you mean all? known: all, sampled, succeeded, failed'),
    ("name: again", "v.yaml:3: name: duplicate key; first given in line 2"),
    ("train: {beta1: 0.1, beta1: 0.2}", "v.yaml:3: train.beta1: duplicate key; first given in line 3"),
    ("about: &a {idea: *a}", "v.yaml:3: aliases (*a) are not allowed; write the value out"),
    ("seed: !!python/object/apply:os.getpid []",
     "v.yaml:3: seed: tag tag:yaml.org,2002:python/object/apply:os.getpid is not allowed; only plain values are"),
    ("loss: {temperature: .nan}", "v.yaml:3: loss.temperature = .nan: must be a finite number"),
    ("loss: {temperature: -.inf}", "v.yaml:3: loss.temperature = -.inf: must be a finite number"),
    ("about: {idea: '${oc.env:HOME}'}", "v.yaml:3: about.idea = ${oc.env:HOME}: only ${key} references are allowed"),
    ("about: {idea: '${${name}:HOME}'}", "v.yaml:3: about.idea = ${${name}:HOME}: only ${key} references are allowed"),
    ("techer: {name: server, key: sk-1}",
     'v.yaml:3: techer = {"name": "server", "key": "***"}: unknown key; did you mean teacher?'),
    ("pair: {key: 'sk-1${oc.env:HOME}'}", "v.yaml:3: pair.key: only ${key} references are allowed"),
    ("about: {idea: '${nowhere}'}", "v.yaml:3: about.idea: Interpolation key 'nowhere' not found"),
    ("pair: smolm2_self", 'v.yaml:3: pair = "smolm2_self": no such file; did you mean smollm2_self? known: bench'),
    ("a: [1", "v.yaml:4: expected ',' or ']', but got '<stream end>'"),
    ("schedule: [{round: 5, set: {train.learnign_rate: 1}}]",
     "v.yaml:3: schedule.0.set: train.learnign_rate = 1: unknown key; did you mean learning_rate?"),
    ("schedule: [{round: 5, set: {terms.7.coefficient: 1}}]", "v.yaml:3: schedule.0.set = "),
    ("schedule: [{round: 5, set: {train.lora: {rank: 4}}}]",
     "v.yaml:3: schedule.0.set: from round 5 on, train.lora: holds for a whole run; set it outside the schedule"),
    ("schedule: [{round: 5, set: {budget.trained_tokens: 10}}]",
     "v.yaml:3: schedule.0.set: from round 5 on, budget: holds for a whole run; set it outside"),
    ("schedule: [{round: 5, set: {seed: 3}}]",
     "v.yaml:3: schedule.0.set: from round 5 on, seed: holds for a whole run; set it outside the schedule"),
    ("schedule: [{round: 5, set: {evaluate_every: 3}}]",
     "v.yaml:3: schedule.0.set: from round 5 on, evaluate_every: holds for a whole run; set it outside the schedule"),
    ("schedule: [{round: 5, set: {prompts.count: 3000}}]",
     "v.yaml:3: schedule.0.set: from round 5 on, prompts.count: holds for a whole run; set it outside the schedule"),
    ("schedule: [{round: 5, set: {loss.temperature: 2.0}}]",
     "v.yaml:3: schedule.0.set: from round 5 on, rollout.sampling.temperature = 1.0: terms.0 learns"),
])
def test_golden_errors(write, line, message):
    got = errors(write(f"defaults: BASE\nname: v\n{line}\n"))
    assert len(got) == 1
    assert got[0].startswith(message)


@pytest.mark.parametrize("override, message", [
    ("=3", "override '=3': must be key=value"),
    ("train.beta1=.inf", "override 'train.beta1=.inf': train.beta1 = .inf: must be a finite number"),
    ("rounds=", "override 'rounds=': rounds = null: must be a valid integer"),
    ("seed=${oc.env:HOME}",
     "override 'seed=${oc.env:HOME}': seed = ${oc.env:HOME}: only ${key} references are allowed"),
    ("terms.0.divergence.beat=1",
     "override 'terms.0.divergence.beat=1': terms.0.divergence.beat = 1: unknown parameter of jsd; did you mean beta?"),
    ("tran.beta1=0.1",
     "override 'tran.beta1=0.1': tran = {\"beta1\": 0.1}: unknown key; did you mean train? known: name, about"),
    ("benchmarks=tiny,tinny",
     "override 'benchmarks=tiny,tinny': benchmarks = \"tinny\": no such file; did you mean tiny?"),
    ("pair.techer={key: sk-1, url: 'http://u:sk-1@h'}",
     "override 'pair.techer=***': pair.techer = {\"key\": \"***\", \"url\": \"***\"}: unknown key; did you mean"),
    ("pair.teacher.key: sk-1", "override 'pair.teacher.key=***': must be key=value"),
    ("schedule=[{round: 2, set: {pair.teacher.key: sk-1}}]",
     "override 'schedule=***': schedule.0.set: from round 2 on, pair.teacher.key: unknown parameter of tiny_teacher"),
    ("pair.kye=sk-1", "override 'pair.kye=***': pair.kye: unknown key"),
    ("pair.about=http://u:sk-1@h", "override 'pair.about=***': pair.about = \"***\": unknown key"),
    ("rollout.sampling.max_new_tokens=-1",
     "override 'rollout.sampling.max_new_tokens=-1': rollout.sampling.max_new_tokens = -1: must be greater"),
    ("pair.context_tokens=", "override 'pair.context_tokens=': pair.context_tokens = null: must be"),
])
def test_golden_errors_of_overrides(override, message):
    got = errors("gkd", [override])
    assert got[0].startswith(message) and len(got) == 1


def test_missing_files_are_named_with_the_nearest_known(write):
    assert errors("gkdd")[0].startswith('variant = "gkdd": no such file; did you mean gkd? known: gkd')
    assert errors(write("name: v\ndefaults: ../nowhere.yaml\n")) == [
        'v.yaml:2: defaults = "../nowhere.yaml": no such file beside v.yaml']
    assert errors(write("defaults: v.yaml\n")) == ["v.yaml: defaults: v.yaml leads back to itself"]
    assert errors(write("defaults: BASE\nname: v\npair: 3\n"))[0] == "v.yaml:3: pair = 3: must be a mapping"
    assert errors(write("- 1\n")) == ["v.yaml:1: must be a mapping of keys and values"]


def test_off_is_a_word(write):
    assert loading.load(write("defaults: BASE\nname: v\ntrain: {autocast: off}\n")).train.autocast == "off"


def test_schedule_patches_hold_from_their_round_on(write):
    recipe = loading.load(write(
        "defaults: BASE\nname: v\nschedule:\n"
        "  - {round: 2, set: {terms.0.coefficient: 0.5, train.learning_rate: 0.01, prompts.grader: exact}}\n"
        "  - {round: 4, set: {terms.0.estimator.clip_low: 0.2}}\n"))
    assert [recipe.at(i).terms[0].coefficient for i in (0, 1, 2, 9)] == [1.0, 1.0, 0.5, 0.5]
    assert recipe.at(3).terms[0].estimator.params["clip_low"] is None
    assert recipe.at(4).terms[0].estimator.params["clip_low"] == 0.2
    assert recipe.at(2).train.learning_rate == 0.01


def test_a_suite_gives_overrides_to_all_or_one_of_its_variants(write):
    path = write("name: s\nvariants: [gkd, sft]\nseeds: [3]\nbaseline: sft\nset: [rounds=7]\n"
                 "variant_set: {gkd: [terms.0.divergence.beta=0.1]}\n")
    suite, cells = loading.load_suite(path, ["train.epochs=2", "seeds=[4, 5]"])
    assert suite.seeds == [4, 5] and len(cells) == 4
    assert all(recipe.rounds == 7 and recipe.train.epochs == 2 for _, _, recipe in cells)
    assert cells[0][2].terms[0].divergence.params == {"beta": 0.1}


def test_a_command_may_run_some_of_a_suites_variants(write):
    path = write("name: s\nvariants: [gkd, sft]\nbaseline: start\nvariant_set: {gkd: [train.epochs=2]}\n")
    assert [variant for variant, *_ in loading.load_suite(path, ["variants=[sft]", "seeds=[0]"])[1]] == ["sft"]
    with pytest.raises(RecipeError, match="variant_set.gdk.*did you mean gkd"):
        loading.load_suite(write("name: s\nvariants: [gkd]\nbaseline: start\nvariant_set: {gdk: [rounds=2]}\n"))


def test_errors_of_a_suite(write):
    def suite_errors(text):
        with pytest.raises(RecipeError) as caught:
            loading.load_suite(write(text))
        return str(caught.value).splitlines()
    assert suite_errors("name: s\nvariants: [gkd]\nbaseline: gdk\nsed: 1\n") == [
        "v.yaml:4: sed = 1: unknown key; did you mean seeds? known: " + ", ".join(Suite.model_fields)]
    assert suite_errors("name: s\nvariants: [gkd]\nbaseline: gdk\n") == [
        'v.yaml:3: baseline = "gdk": unknown baseline; did you mean gkd? known: start, gkd']
    got = suite_errors("name: s\nvariants: [gkd, gdk, sft]\nbaseline: start\nbenchmark: tny\nset: [rounds=x]\n")
    assert got[0] == "override 'rounds=x': rounds = \"x\": must be a valid integer"
    assert got[1].startswith('variant = "gdk": no such file; did you mean gkd?') and len(got) == 2


TINY = """defaults: BASE
name: v
terms:
  - {support: {name: teacher_top_k, k: 32}, divergence: forward_kl}
train: {epochs: 2}
tiny:
  terms.0.support.k: 8
  train.epochs: 3
  rollout.prompts_per_round: 16
  rounds: 7
"""


def scale_of(recipe: Recipe) -> tuple:
    return (recipe.terms[0].support.params["k"], recipe.train.epochs, recipe.rollout.prompts_per_round, recipe.rounds)


def test_a_variants_tiny_settings_go_over_variant_and_pair_on_a_tiny_pair_only(write):
    path = write(TINY)
    assert scale_of(loading.load(path)) == (8, 3, 16, 7)                 # the pair's own file says 45 rounds
    assert loading.load(path).terms[0].support.params["renormalise"] == "both"
    big = loading.load(path, ["pair=smollm2_self"])
    assert scale_of(big)[:3] == (32, 2, loading.load(BASE, ["pair=smollm2_self"]).rollout.prompts_per_round)
    assert big.rounds == loading.load(BASE, ["pair=smollm2_self"]).rounds != 7
    assert loading.load("sdpo").rollout.prompts_per_round == 16


def test_whether_a_pair_is_tiny_may_be_said_on_the_command_line_and_what_else_it_says_stands(write):
    path = write(TINY)
    assert scale_of(loading.load(path, ["train.epochs=5", "terms.0.support.k=4"])) == (4, 5, 16, 7)
    assert scale_of(loading.load(path, ["pair.tiny=false"])) == (32, 2, 128, 45)
    assert scale_of(loading.load(path, ["pair=smollm2_self", "pair.tiny=true"])) == (8, 3, 16, 7)
    own = "pair={name: own, student: tiny_student, teacher: tiny_teacher, context_tokens: 160%s}"
    assert scale_of(loading.load(path, [own % ""]))[:3] == (32, 2, 128)
    assert scale_of(loading.load(path, [own % ", tiny: true"])) == (8, 3, 16, 7)


def test_tiny_settings_have_the_line_they_stand_on_for_their_source(write):
    sources = loading.provenance(write(TINY), ["train.epochs=5"])
    assert sources["terms.0.support.k"] == "v.yaml:7" and sources["rounds"] == "v.yaml:10"
    assert sources["train.epochs"] == "override 'train.epochs=5'"
    assert not any(key.startswith("tiny") for key in sources)
    elsewhere = loading.provenance(write(TINY), ["pair=smollm2_self"])
    assert elsewhere["terms.0.support.k"] == "v.yaml:4"


@pytest.mark.parametrize("line, message", [
    ("tiny: {train.epohcs: 3}", "v.yaml:3: train.epohcs = 3: unknown key; did you mean epochs?"),
    ("tiny: {train.epochs: many}", 'v.yaml:3: train.epochs = "many": must be a valid integer'),
    ("tiny: {terms.3.rows: all}", "v.yaml:3: tiny: terms.3: no such entry; terms has 1, counted from 0"),
    ("tiny: {terms.0.advantage.scale: 3}", "v.yaml:3: terms.0.advantage.scale = 3: unknown parameter of teacher_gap"),
    ("tiny: {rollout.prompts_per_round: 0}", "v.yaml:3: rollout.prompts_per_round = 0: must be greater than or equal"),
    ("tiny: [1]", "v.yaml:3: tiny = [1]: must map dotted keys to values"),
    ("tiny: {rollout.sampling.top_p: 0.9}", "v.yaml:3: rollout.sampling.top_p = 0.9: terms.0 learns from tokens"),
])
def test_errors_of_tiny_settings_name_file_and_line(write, line, message):
    got = errors(write(f"defaults: BASE\nname: v\n{line}\n"))
    assert len(got) == 1 and got[0].startswith(message), got
