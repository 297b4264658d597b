"""Combinations that train silently wrong are refused, with the way out; teachers give no more than terms need."""
import pytest

from tasks.opd.core.errors import RecipeError
from tasks.opd.recipe import loading
from tasks.opd.recipe.checks import recipes


def errors(variant, *overrides) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loading.load(variant, overrides)
    return str(caught.value).splitlines()


def term(**settings) -> str:
    inside = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f"terms=[{{{inside}}}]"


@pytest.mark.parametrize("overrides, parts", [
    ([term(divergence="forward_kl")], ["terms.0.support", "forward_kl", "use support: full"]),
    ([term(divergence="jsd")], ["terms.0.support", "jsd", "use support: full"]),
    ([term(divergence="reverse_kl")], ["terms.0.support", "estimator: k2", "advantage: teacher_gap"]),
    ([term(divergence="forward_kl", estimator="k3")], ["terms.0.estimator", "not forward_kl to teacher on sampled"]),
    ([term(divergence="reverse_kl", support="full", estimator="k2")],
     ["terms.0.estimator", "not reverse_kl to teacher on full"]),
    ([term(divergence="reverse_kl", estimator="policy_gradient")], ["terms.0.estimator", "needs an advantage"]),
    ([term(divergence="nll", support="full")], ["terms.0.support", "nll is of the tokens written"]),
    ([term(advantage="teacher_gap")], ["terms.0.estimator = \"exact\"", "policy_gradient"]),
    ([term(advantage="teacher_gap", estimator="policy_gradient", support="full")], ["terms.0.support", "sampled"]),
    ([term(divergence="forward_kl", support="{name: teacher_top_k, k: 1}")],
     ["terms.0.support.k = 1", "always 0", "renormalise: tail"]),
    ([term(advantage="grpo", estimator="policy_gradient")], ["rollout.writers", "n: 2 or more"]),
    ([term(advantage="teacher_gap", estimator="policy_gradient", clip="{at: position}")],
     ["terms.0.clip.at", "support full"]),
    ([term(divergence="nll", clip="{at: entry}")], ["terms.0.clip.at"]),
    (["rollout.sampling.top_p=0.9"], ["rollout.sampling.top_p = 0.9", "accepts: {truncated_sampling: why}"]),
    (["rollout.sampling.top_k=5"], ["rollout.sampling.top_k = 5"]),
    (["rollout.sampling.temperature=0.7"], ["rollout.sampling.temperature = 0.7", "loss.temperature"]),
    (["rollout.writers=[teacher]"], ["terms.0.rows = \"sampled\"", "use rows: all"]),
    (["terms.0.weights=[keep_soft_or]"], ["terms.0.weights", "the term's own divergence", "divergence: reverse_kl"]),
    ([term(advantage="candidate_gap", estimator="candidate_policy_gradient", support="{name: student_top_k, k: 4}")],
     ["terms.0.support.renormalise = \"both\"", "renormalise: none"]),
    ([term(advantage="candidate_gap", estimator="candidate_policy_gradient", support="full")],
     ["terms.0.support = \"full\"", "divergence: reverse_kl"]),
    ([term(advantage="centred_gap", estimator="policy_gradient", target="{name: extrapolated, scale: 1.25}")],
     ["terms.0.target = \"extrapolated\"", "teacher_gap"]),
    (["teacher.model=expert_four", "terms.0.target={name: extrapolated, scale: 1.25, reference: teacher}"],
     ["terms.0.target = \"teacher\"", "which is expert_four"]),
    (["teacher.model=self", "schedule=[{round: 1, set: {teacher.refresh: {name: ema, decay: 0.9}}}]"],
     ["schedule.0.set", "neither begin nor end"]),
    ([term(advantage="{name: fixed, value: -1.0}", estimator="policy_gradient")],
     ["terms.0.advantage = \"fixed\"", "zero in the mean", "accepts: {constant_advantage: why}"]),
    ([term(advantage="fixed", estimator="policy_gradient", rows="all", weights="[uniform, skip_first]")],
     ["terms.0.advantage = \"fixed\""]),
    (["teacher.model=teacer"], ["teacher.model = \"teacer\"", "did you mean teacher?"]),
    (["teacher.refresh=live"], ["teacher.refresh = \"live\"", "teacher.model: self"]),
    (["pair.others={student: tiny_student}"], ["pair.others.student", "taken"]),
    (["prompts.max_prompt_tokens=225"], ["prompts.max_prompt_tokens = 225", "use at most 224"]),
    (["benchmarks.0.sampling.max_new_tokens=257"], ["benchmarks.0.max_prompt_tokens = 64", "use at most 63"]),
    (["benchmarks.0.divergence_max_tokens=95"],
     ["benchmarks.0.divergence_max_tokens = 95", "an answer may have 96 tokens", "or 0 for all"]),
    (["extra_prompts=[{name: notes, source: {name: text, path: notes.jsonl}, count: 8, per_round: 9, "
      "max_prompt_tokens: 64}]"],
     ["extra_prompts.0.per_round = 9", "extra_prompts.0.count 8"]),
    (["prompts.domain=sums", "terms.0.domains=[sum]"], ["terms.0.domains = \"sum\"", "did you mean sums?"]),
    (["extra_prompts=[{name: more, source: tiny, first: 999950, count: 100, per_round: 1, max_prompt_tokens: 64}]"],
     ["benchmarks.0.first = 1000000", "items 999950 to 1000049", "start at 1000050"]),
    (["prompts.count=100"], ["rollout.prompts_per_round = 128", "prompts.count 100"]),
    (["benchmarks.0.first=5119"],
     ["benchmarks.0.first = 5119", "items 5119 to 5318", "items 0 to 5119", "start at 5120"]),
])
def test_wrong_combinations_are_refused_with_the_way_out(overrides, parts):
    got = errors("opd_reverse_kl", *overrides)
    assert len(got) == 1, got
    assert all(part in got[0] for part in parts), got[0]


@pytest.mark.parametrize("overrides", [
    [term(divergence="reverse_kl", estimator="k2")],
    [term(divergence="reverse_kl", estimator="k3")],
    [term(divergence="forward_kl", support="{name: teacher_top_k, k: 1, renormalise: tail}")],
    [term(divergence="forward_kl", support="full"), "rollout.sampling.top_p=0.9"],
    ["rollout.sampling.top_p=0.9", "accepts={truncated_sampling: why}"],
    ["rollout.sampling.temperature=0.7", "loss.temperature=0.7"],
    [term(advantage="fixed", estimator="policy_gradient"), "accepts={constant_advantage: why}"],
    [term(advantage="fixed", estimator="policy_gradient", rows="succeeded")],
    [term(advantage="fixed", estimator="policy_gradient", rows="all"), "rollout.writers=[student, teacher]"],
    [term(advantage="fixed", estimator="policy_gradient", weights="[gap_above_floor]")],
    ["teacher.model=self", "teacher.refresh=live"],
    ["teacher.model=other", "pair.others.other=tiny_teacher"],
    ["benchmarks.0.first=5120"],
    ["benchmarks.0.first=0", "benchmarks.0.source.seed=1"],  # tiny hashes its seed: other questions
])
def test_right_combinations_pass(overrides):
    assert recipes.problems(loading.load("opd_reverse_kl", overrides)) == []


def test_reasoning_gym_splits_are_compared_by_index_plus_seed():
    # training: items 0..1023 of seed 0; item 100 of seed 900 is drawn from 1000
    overlap = ["pair=smollm2_pruned", "benchmarks.0.first=100", "benchmarks.0.source.seed=900"]
    got, = errors("opd_reverse_kl", *overlap)
    assert "items 1000 to 1031 overlap" in got and "start at 124" in got
    assert loading.load("opd_reverse_kl", [*overlap, "benchmarks.0.first=124"])


def test_a_context_or_writer_that_needs_solutions_needs_a_source_that_has_them():
    jsonl = ("prompts={name: q, source: {name: jsonl, path: q.jsonl}, count: 128, max_prompt_tokens: 64, "
             "grader: numeric}")
    assert "has no solutions" in errors("opsd", jsonl)[0]
    assert "has no solutions to copy" in errors("gkd", jsonl)[0]
    assert loading.load("opsd", [jsonl, "prompts.source.solution=worked"])


def test_what_an_engine_cannot_give_is_refused_with_the_way_out():
    for variant in ("gkd", "opsd"):
        got = errors(variant, "engine.name=vllm")[0]
        assert "cannot give hidden" in got and "teacher_top_k" in got and "engine.scores=torch" in got
        assert loading.load(variant, ["engine.name=vllm", "engine.scores=torch"])
    assert loading.load("opd_reverse_kl", ["engine.name=vllm"])
    assert loading.load("gkd", ["engine.name=vllm", "terms.0.support={name: teacher_top_k, k: 20}"])


def test_a_recipe_without_teacher_terms_asks_for_none():
    for variant in ("sft", "seqkd", "grpo"):
        recipe = loading.load(variant, ["teacher.model=nobody"])
        assert recipes.needs(recipe) == {}


def test_needs_are_the_union_over_the_terms():
    gap = "{advantage: teacher_gap, estimator: policy_gradient}"
    top = "{divergence: forward_kl, support: {name: teacher_top_k, k: %d}}"
    recipe = loading.load("opd_reverse_kl", [f"terms=[{gap}, {top % 8}, {top % 20}, {{divergence: nll}}]"])
    assert recipes.needs(recipe) == {"teacher": {"sampled": True, "top_k": 20, "entropy": False, "hidden": False}}
    student = loading.load("opd_jsd", ["terms.0.support=student_top_k"])
    assert recipes.needs(student) == {"teacher": {"sampled": True, "top_k": 0, "entropy": False, "hidden": True}}
    assert list(recipes.needs(loading.load("opsd"))) == ["self"]


def test_the_report_is_what_check_prints():
    report = recipes.report(loading.load("gkd"), loading.provenance("gkd", ["seed=1"]))
    assert report["problems"] == report["notes"] == []
    assert report["engine"] == {"name": "torch", "columns": list(recipes.COLUMNS)}
    assert [f.rsplit("configs/", 1)[1] for f in report["files"]] == [
        "base.yaml", "benchmarks/tiny.yaml", "pairs/tiny.yaml", "prompts/tiny.yaml", "variants/gkd.yaml"]


def test_what_goes_wrong_only_in_later_rounds_is_found():
    got, = errors("opd_reverse_kl", "schedule=[{round: 3, set: {rollout.sampling.top_p: 0.9}}]")
    assert ": schedule.0.set: from round 3 on, rollout.sampling.top_p = 0.9" in got


GAP = "advantage: teacher_gap, estimator: policy_gradient"
CANDIDATES = "advantage: candidate_gap, estimator: candidate_policy_gradient"
JSONL = "prompts={name: q, source: {name: jsonl, path: q.jsonl%s}, count: 128, max_prompt_tokens: 64, grader: numeric}"


@pytest.mark.parametrize("variant, wrong, parts, right", [
    ("exopd", ["terms.0.target.reference=teacher_strat"],
     ["terms.0.target = \"teacher_strat\"", "unknown model of pair tiny", "did you mean teacher_start?", "pair.others"],
     ["terms.0.target.reference=teacher_start"]),
    ("exopd", ["terms.0.target.reference=base"], ["terms.0.target = \"base\"", "name it in pair.others"],
     ["terms.0.target.reference=base", "pair.others.base=tiny_teacher"]),
    ("opd_reverse_kl_full", ["terms.0.target={name: reference, model: nobody}"],
     ["terms.0.target = \"nobody\"", "known: teacher, ", "live"], ["terms.0.target={name: reference, model: live}"]),
    ("sdpo", ["rollout.writers=[{name: student, n: 1}]"],
     ["rollout.writers", "context sibling, which compares the rollouts of a prompt", "n: 2 or more"],
     ["rollout.writers=[{name: student, n: 2}]"]),
    ("dapo", ["rollout.writers=[{name: student, n: 1}]", f"terms=[{{{GAP}, rows: mixed_groups}}]"],
     ["rollout.writers", "n: 2 or more"], [f"terms=[{{{GAP}, rows: mixed_groups}}]"]),
    ("opd_reverse_kl", ["terms=[{divergence: reverse_kl, support: {name: student_top_k, k: 4, renormalise: none}}]"],
     ["terms.0.support.renormalise = \"none\"", "use both or tail", "candidate_gap", "candidate_policy_gradient"],
     ["terms=[{divergence: reverse_kl, support: {name: student_top_k, k: 4, renormalise: tail}}]"]),
    ("opd_reverse_kl", ["terms=[{divergence: reverse_kl, support: {name: student_top_k, k: 4, renormalise: none}}]"],
     ["advantage: candidate_gap with estimator"],
     [f"terms=[{{{CANDIDATES}, support: {{name: student_top_k, k: 4, renormalise: none}}}}]"]),
    ("opd_reverse_kl", ["terms=[{divergence: reverse_kl, support: {name: teacher_top_k, k: 4, renormalise: teacher}}]"],
     ["terms.0.support.renormalise = \"teacher\"", "for forward_kl, not reverse_kl", "use both or tail"],
     ["terms=[{divergence: reverse_kl, support: {name: teacher_top_k, k: 4, renormalise: both}}]"]),
    ("opd_reverse_kl", ["terms=[{divergence: jsd, support: {name: union, k: 4, renormalise: teacher}}]"],
     ["for forward_kl, not jsd"],
     ["terms=[{divergence: forward_kl, support: {name: union, k: 4, renormalise: teacher}}]"]),
    ("routed_teachers", ["pair.experts=null", "pair.experts={}"],
     ["teacher.model = \"routed\"", "has no experts", "pair.experts: {domain: model}"],
     ["pair.experts={four: teacher}"]),
    ("mixed_teachers", ["pair={name: own, student: tiny_student, teacher: tiny_teacher, context_tokens: 160}"],
     ["teacher.model = \"mixed\"", "pair own has no experts"],
     ["pair={name: own, student: tiny_student, teacher: tiny_teacher, context_tokens: 160, experts: {four: teacher}}"]),
    ("routed_teachers", ["pair.experts.four=expert_for"],
     ["pair.experts.four = \"expert_for\"", "did you mean expert_four?"], ["pair.experts.four=expert_four"]),
    ("opd_reverse_kl", [f"terms=[{{{CANDIDATES}}}]"],
     ["terms.0.support = \"sampled\"", "advantage candidate_gap is of candidates", "use support: student_top_k"],
     [f"terms=[{{{CANDIDATES}, support: {{name: student_top_k, renormalise: none}}}}]"]),
    ("zhu_topk", ["terms.0.estimator=policy_gradient"],
     ["terms.0.estimator = \"policy_gradient\"", "candidate_gap needs estimator: candidate_policy_gradient"],
     ["terms.0.estimator=candidate_policy_gradient"]),
    ("opd_reverse_kl", ["terms=[{divergence: reverse_kl, support: full, estimator: candidate_policy_gradient}]"],
     ["terms.0.estimator", "needs an advantage", "use estimator: exact"],
     ["terms=[{divergence: reverse_kl, support: full, estimator: exact}]"]),
    ("opd_reverse_kl", ["terms.0.estimator=candidate_policy_gradient"],
     ["terms.0.estimator = \"candidate_policy_gradient\"", "teacher_gap needs estimator: policy_gradient"],
     ["terms.0.estimator=policy_gradient"]),
    ("opd_reverse_kl", ["terms=[{divergence: reverse_kl, estimator: k2, target: {name: veto, beta: 0.5}}]"],
     ["terms.0.estimator = \"k2\"", "to target teacher on support sampled, not reverse_kl to veto on sampled"],
     ["terms=[{divergence: reverse_kl, estimator: k2, target: teacher}]"]),
    ("opsd", [JSONL % ""], ["teacher.context = \"solution\"", "source jsonl has no solutions", "`solution`"],
     [JSONL % ", solution: worked"]),
    ("sdft", [JSONL % ""], ["teacher.context = \"demonstration\"", "source jsonl has no solutions"],
     [JSONL % ", solution: worked"]),
    ("sdft", [JSONL % ""], ["use a source with worked solutions (tiny"], ["prompts=tiny"]),
    ("trd", ["teacher.model=routed"], ["teacher.model = \"routed\"", "refine.0 trd asks one", "or self"],
     ["teacher.model=expert_four"]),
    ("trd", ["teacher.model=mixed"], ["teacher.model = \"mixed\"", "stands for several"], ["teacher.model=self"]),
    ("trd", ["teacher.model=nobody", "terms=[{divergence: nll, rows: all}]"],
     ["teacher.model = \"nobody\"", "unknown model of pair tiny"], ["terms=[{divergence: nll, rows: all}]"]),
    ("trd", ["terms.0.rows=sampled"], ["terms.0.rows = \"sampled\"", "trd has the teacher write", "use rows: all"],
     ["terms.0.rows=all"]),
    ("trd", ["refine=[{name: truncate, tokens: 9}, trd]"],
     ["refine.1 = \"trd\"", "which truncate before it takes", "put trd first"],
     ["refine=[trd, {name: truncate, tokens: 9}]"]),
    ("trd", ["refine=[{name: trd, which: succeeded, keep: repaired}]"],
     ["refine.0.keep = \"repaired\"", "which: failed"], ["refine=[{name: trd, which: failed, keep: repaired}]"]),
    ("trd_solution", [JSONL % ""], ["refine.0.solution = true", "source jsonl has no solutions", "solution: false"],
     [JSONL % ", solution: worked"]),
    ("trd_solution", [JSONL % ""], ["use a source with worked solutions"], [JSONL % "", "refine=[trd]"]),
    ("opd_reverse_kl", ["refine=[skd]"], ["terms.0.support = \"sampled\"", "refine skd keeps", "support: full"],
     ["refine=[skd]", "terms=[{divergence: reverse_kl, support: full}]"]),
    ("opd_reverse_kl", ["refine=[relay]"], ["refine relay keeps", "accepts: {truncated_sampling: why}"],
     ["refine=[relay]", "accepts={truncated_sampling: why}"]),
    ("skd", ["refine=[trd, skd]"], ["refine.1 = \"skd\"", "trd before it leaves none", "or take skd out"],
     ["refine=[{name: trd, which: failed, others: keep}, skd]"]),
    ("skd", ["refine=[{name: trd, which: failed}, skd]"], ["refine.1 = \"skd\"", "others: keep"],
     ["refine=[skd, relay]"]),
    ("skd", ["rollout.writers=[teacher]"], ["refine.0 = \"skd\"", "the writers are teacher", "add the writer student"],
     ["rollout.writers=[teacher, student]"]),
    ("relay_opd", ["rollout.writers=[teacher, dataset]"], ["refine.0 = \"relay\"", "writers are dataset, teacher"],
     ["rollout.writers=[teacher, dataset]", "refine=[]"]),
    ("mixed_teachers", ["engine.name=vllm"], ["cannot give hidden of model expert_", "engine.scores=torch"],
     ["engine.name=vllm", "engine.scores=torch"]),
    ("opd_reverse_kl", ["engine.name=vllm", "loss.temperature=1.1", "rollout.sampling.temperature=1.1"],
     ["vllm scores at temperature 1 only", "engine.scores=torch"],
     ["engine.name=vllm", "loss.temperature=1.1", "rollout.sampling.temperature=1.1", "engine.scores=torch"]),
    ("opd_reverse_kl", ["engine.name=vllm", "engine.dtype=float64"], ["engine.dtype", "float32 or bfloat16"],
     ["engine.name=vllm"]),
    ("gkd", ["engine.name=vllm", "engine.scores=torch", "rollout.sampling.temperature=3.0"],
     ["rollout.sampling.temperature", "up to 2"], ["engine.name=vllm", "engine.scores=torch"]),
])
def test_each_refusal_names_a_way_out_that_passes(variant, wrong, parts, right):
    got = errors(variant, *wrong)
    models = {line.partition("of model ")[2].partition(",")[0] for line in got}
    assert len(got) == max(1, len(models)), got
    assert all(part in got[0] for part in parts), got[0]
    assert recipes.problems(loading.load(variant, right)) == []


def test_a_placebo_without_a_teacher_asks_for_none_and_any_reference_may_be_a_version_of_the_student():
    assert recipes.problems(loading.load("fixed_negative_advantage", ["teacher.model=nobody"])) == []
    for name in ("start", "live", "self"):
        assert recipes.problems(loading.load("exopd", [f"terms.0.target.reference={name}"])) == []


def behind(**params) -> str:
    given = {"name": "server", "urls": "[http://127.0.0.1:8000]", "model": "tiny", "tokenizer": "there", **params}
    return "pair.teacher={" + ", ".join(f"{key}: {value}" for key, value in given.items()) + "}"


TOP_K = "terms.0.support={name: teacher_top_k, k: 20}"


@pytest.mark.parametrize("variant, wrong, parts, right", [
    ("gkd", [behind()], ["pair.teacher: a server cannot give hidden, which terms.0 needs", "teacher_top_k",
                         "name: folder"], [behind(), TOP_K]),
    ("gkd", [behind(), "engine.name=vllm"], ["pair.teacher: a server cannot give hidden"],
     [behind(), TOP_K, "engine.name=vllm"]),
    ("opd_reverse_kl", [behind(), "loss.temperature=0.7", "rollout.sampling.temperature=0.7"],
     ["loss.temperature = 0.7: model teacher is behind a server", "loss.temperature=1"], [behind()]),
    ("skd", [behind(), TOP_K], ["teacher.model = \"teacher\": refine.0 skd needs the teacher's caches",
                                "a teacher behind a server lends none", "lies in a folder"],
     [behind(), TOP_K, "refine=[]"]),
    ("relay_opd", [behind(), TOP_K], ["refine.0 relay needs the teacher's caches"],
     [behind(), "teacher.model=other", "pair.others.other=tiny_teacher"]),
    ("opd_reverse_kl", [behind().replace("pair.teacher", "pair.student")], ["pair.student", "cannot be trained"],
     [behind()]),
    ("opd_reverse_kl", [behind(), "pair.student={name: pruned, drop: [0]}"],
     ["pair.student.of", "is behind a server and has no weights"], [behind()]),
    ("opd_reverse_kl", [behind(key="sk-123-secret")],
     ["pair.teacher.key: must be the name of an environment variable"],
     [behind(key="OPD_TEACHER_KEY")]),
    ("opd_reverse_kl", [behind(key="SK123SECRET")], ["pair.teacher.key: ", "ends in _KEY, _TOKEN or _SECRET"],
     [behind(key="OPD_TEACHER_TOKEN")]),
    ("opd_reverse_kl", [behind(key="HF_TOKEN")], ["pair.teacher.key: ", "begins with OPD_"], [behind(key="OPD_TOKEN")]),
    ("opd_reverse_kl", [behind(), "pair.teacher.key=sk-123-secret"], ["override 'pair.teacher.key=***'"], [behind()]),
    ("opd_reverse_kl", [behind(), "pair.teacher.keys='sk-123-secret'"],
     ["override 'pair.teacher.keys=***': pair.teacher.keys: unknown parameter of server"], [behind()]),
    ("opd_reverse_kl", [behind(key="sk-123-secret").replace("pair.teacher", "pair.techer")],
     ["override 'pair.techer=***': pair.techer = ", '"urls": "***"', '"model": "tiny"'], [behind()]),
    ("opd_reverse_kl", [behind(urls="['http://u:sk-123-secret@host']")],
     ["pair.teacher.urls: must be like http://host:8000"], [behind()]),
    ("opd_reverse_kl", [behind(api_key="sk-123-secret")],
     ["pair.teacher.api_key: unknown parameter of server"], [behind()]),
])
def test_a_teacher_behind_a_server_is_asked_for_what_it_has_and_its_key_is_never_shown(variant, wrong, parts, right):
    got = errors(variant, *wrong)
    assert len(got) == 1 and all(part in got[0] for part in parts), got
    assert not any(secret in got[0] for secret in ("-secret", "SK123"))
    assert recipes.problems(loading.load(variant, right)) == []


def test_terms_whose_teachers_share_only_some_rollouts_are_noted():
    other = "target: {name: reference, model: expert_four}, support: full, divergence: reverse_kl"
    own = "support: full, divergence: reverse_kl"

    def notes(first: str, second: str, *more: str):
        terms = f"terms=[{{{own}, rows: {first}}}, {{{other}, rows: {second}, coefficient: 0.5}}]"
        return recipes.notes(loading.load("opd_reverse_kl", [terms, *more]), 45)
    note, = notes("sampled", "failed")
    assert "terms.0 (rows sampled) and terms.1 (rows failed) have different teachers" in note and "(1 + 0.5)" in note
    assert notes("sampled", "sampled") == notes("succeeded", "failed") == []
    assert notes("sampled", "failed", "terms.1.target=teacher") == []                           # one teacher
    assert notes("sampled", "failed", "terms.1.target={name: reference, model: start}") == []   # an anchor
