"""What every variant is in a limit: the tables of `objective/test_equivalences`.

A setting of a row is one of the command line; a world says which rollouts there are (`test_equivalences.world_of`).
"""
from typing import NamedTuple

V = 40                            # tokens of the vocabulary
# worlds: plain; four: rollouts of that domain, two groups of three; all_wrong, all_right: the same, rewarded so
GROUPS = [("four", [3, 5], (1.0, 0.0, 0.0)), ("five", [7], (0.0, 0.0)), ("four", [9, 2, 6], (1.0, 1.0, 0.0))]
LENGTHS = [5, 9, 3, 2, 7, 4, 1, 6]  # in order; the group of equal rewards has 2 + 7


def self_teacher(context: str, refresh: str = "frozen") -> str:
    return f"teacher={{model: self, refresh: {refresh}, context: {context}}}"


class Limit(NamedTuple):
    """In this limit the variant's gradient is the sum of factor * that of others."""
    variant: str
    settings: list[str]
    equals: list[tuple[float, str, list[str]]]
    apart: float = 1e-10          # largest difference of an entry; 0.0: bit for bit
    moved: bool = True            # also after the student has left the round's start
    world: str = "plain"


OPD, FULL, FORWARD, JSD = "opd_reverse_kl", "opd_reverse_kl_full", "opd_forward_kl", "opd_jsd"
EVERY = f"terms.0.support.k={V}"                                   # the top k is the whole vocabulary
OURS, EIGHT = "rollout.writers=[student]", "rollout.writers=[{name: student, n: 8}]"
ONE_EXPERT = "pair.experts={four: teacher, five: teacher}"
LIVE = self_teacher("same", "live")                                # it sees nothing and is the student itself
WARM = "loss.temperature=1.1"
SUCCESS, TOLD = "{name: sibling, feedback: never}", "{name: sibling, feedback: alone}"
PER_TOKEN = "terms.0.reduction=token"
FIXED, AVERAGE = "schedule=[]", "{name: ema, decay: 0.95}"
BIT, SINGLE = 0.0, 1e-7           # the distribution sampled from is kept in single precision
THINK = "rethinking_"
UNREFINED = ["refine=[]", "terms.0.rows=sampled", "rollout.sampling.temperature=1.0", "rollout.sampling.top_p=1.0"]
HALF = "rollout.writers=[{name: student, fraction: 0.5}, {name: dataset, fraction: 0.5}]"
PAIRS = HALF.replace("0.5}, ", "0.5, n: 2}, ")                      # as many a prompt as grpo asks for
FLAT = ["terms.0.weights.0.power=0", "terms.1.weights.0.power=0"]
RAW = ["terms.0.support.k=4", "terms.0.advantage.normalise=false"]



def trusted_from(threshold: float) -> list[str]:
    return [f"terms.{i}.weights.0.threshold={threshold}" for i in (0, 1)]


TABLE = [
    # baselines
    Limit("sft", [OURS], [(-1, "fixed_negative_advantage", [])], moved=False),
    Limit("gkd", [OURS, PER_TOKEN], [(1, JSD, [])], BIT),
    Limit("gkd", [OURS, PER_TOKEN, "terms.0.divergence=forward_kl"], [(1, FORWARD, [])], BIT),
    Limit(JSD, ["terms.0.divergence.beta=1e-8", "terms.0.coefficient=1e8"], [(1, FORWARD, [])], 1e-5),
    Limit(JSD, ["terms.0.divergence.beta=0.99999999", "terms.0.coefficient=1e8"], [(1, FULL, [])], 1e-5),
    Limit(JSD, ["terms.0.divergence.beta=0.3"], [(0.3, "distillm_skl", ["terms.0.divergence.alpha=0.3"]),
                                                 (0.7, "distillm_srkl", ["terms.0.divergence.alpha=0.7"])]),
    Limit("distillm_skl", ["terms.0.divergence.alpha=1e-9"], [(1, FORWARD, [])], 1e-5),
    Limit("distillm_srkl", ["terms.0.divergence.alpha=1e-9"], [(1, FULL, [])], 1e-5),
    Limit("grpo", [PER_TOKEN],
          [(1, "dapo", ["terms.0.rows=sampled", "terms.0.estimator.clip_high=0.2"])], BIT),
    Limit("dr_grpo", ["terms.0.advantage.scale=true", "terms.0.reduction=sequence"], [(1, "grpo", [])], BIT),
    Limit("dapo", ["terms.0.estimator.clip_high=0.2"],                             # equal groups only fill the mean
          [(sum(LENGTHS) / (sum(LENGTHS) - 9), "grpo", [PER_TOKEN])]),
    Limit("ppo_clip", [], [(1, OPD, [])], BIT, moved=False),
    Limit("ppo_clip", ["terms.0.estimator={name: policy_gradient, clip_low: 0.999999, clip_high: 1e9}"], [(1, OPD, [])],
          BIT),
    # credit
    Limit("opd_return_to_go", ["terms.0.advantage.discount=0"], [(1, OPD, [])], BIT),
    Limit("opd_return_to_go", [], [(1, OPD, [])], BIT, world="one_token"),
    Limit("opd_discounted", ["terms.0.advantage.discount=0"], [(1, OPD, [])], BIT),
    Limit("opd_discounted", ["terms.0.advantage.discount=1"], [(1, "opd_return_to_go", [])], BIT),
    # self-teachers
    Limit("opsd", ["terms.0.clip.limit=1e9"],                                      # GKD's beta 0 is the forward KL
          [(1, "gkd", [self_teacher("solution"), WARM, OURS, PER_TOKEN, "terms.0.divergence=forward_kl"])], BIT),
    Limit("opsd", ["terms.0.clip.limit=1e9"], [(1, "opsd_no_clip", [])], BIT),
    Limit("opsd", [LIVE], [], moved=False),
    Limit("opsd_position_clip", ["terms.0.clip.limit=1e9"], [(1, "opsd_no_clip", [])], BIT),
    Limit("opsd_no_clip", [], [(1, FORWARD, [self_teacher("solution"), WARM])], BIT),
    Limit("pw_opsd", ["terms.0.weights.0.lowest=1.0"], [(1, "opsd", ["terms.0.reduction=sequence"])], BIT),
    Limit("dash", [], [(1, "opsd", [])], BIT, world="one_token"),                  # nothing to hand on
    Limit("dash", ["terms.0.weights.0.kappa=0"],                                   # half is handed on: 1 and 1.5
          [(1, "opsd", []), (0.5, "opsd", ["terms.0.weights=[{name: skip_first, tokens: 1}]"])], world="two_tokens"),
    Limit("sdft", ["terms.0.weights.0.tokens=0"],
          [(1, FORWARD, [self_teacher("demonstration", AVERAGE)])], BIT),
    Limit("sdft", [LIVE], [], moved=False),
    Limit("sdpo", [EVERY], [(1, JSD, [self_teacher(SUCCESS, AVERAGE), EIGHT])], SINGLE, moved=False),
    Limit("sdpo", [EVERY, "terms.0.estimator=exact"], [(1, JSD, [self_teacher(SUCCESS, AVERAGE), EIGHT])], SINGLE),
    Limit("sdpo", [LIVE], [], moved=False),
    Limit("sdpo_feedback", [EVERY, "terms.0.estimator=exact"],
          [(1, FULL, [self_teacher(TOLD, "{name: ema, decay: 0.99}"), EIGHT])], SINGLE),
    Limit("sdpo_trust_region", ["terms.0.target.share=0"], [(1, "sdpo", ["teacher.refresh=frozen"])]),
    Limit("sdpo_trust_region", ["terms.0.target.share=1"], [(1, "sdpo", ["teacher.refresh=live"])]),
    Limit("sdpo_trust_region", ["terms.0.target.share=1", "teacher.context=same"], [], moved=False),
    Limit("opcd", [EVERY], [(1, FULL, ["teacher={model: self, context: {name: experience, text: x}}"])]),
    # beyond the teacher
    Limit("gopd", ["terms.0.target.scale=1"], [(1, OPD, [])], BIT),
    Limit("exopd", ["terms.0.target.scale=1"], [(1, OPD, [])], BIT),
    Limit("exopd", ["terms.0.target.scale=0"], [(1, OPD, ["teacher.model=start"])], BIT),
    Limit("exopd", [], [(1.25, OPD, []), (-0.25, OPD, ["terms.0.target={name: reference, model: start}"])]),
    Limit("exopd_corrected", ["terms.0.target.scale=1"], [(1, OPD, [])], BIT),
    Limit("exopd_corrected", ["terms.0.target.scale=0"], [(1, OPD, ["teacher.model=teacher_start"])], BIT),
    Limit("exopd_corrected", ["terms.0.target.reference=start"], [(1, "exopd", [])], BIT),
    Limit("veto", ["terms.0.target.beta=0", FIXED], [(1, FORWARD, [])]),
    # in turns: of the student's own words, the losses
    Limit("skd", [], [(1, FORWARD, ["terms.0.reduction=sequence"])], BIT),
    Limit("skd", [], [(1, "skd_reverse_kl", ["terms.0.divergence=forward_kl"])], BIT),
    Limit("skd_reverse_kl", [PER_TOKEN], [(1, "relay_opd", [])], BIT),
    Limit("relay_opd", [], [(1, FULL, [])], BIT),
    # many teachers
    Limit("routed_teachers", [ONE_EXPERT], [(1, OPD, [])], BIT),
    Limit("routed_teachers", [], [(1, OPD, ["teacher.model=expert_four"])], BIT, world="four"),
    Limit("exopd_experts", ["terms.0.target.scale=1"], [(1, "routed_teachers", [])], BIT),
    Limit("exopd_experts", [ONE_EXPERT], [(1, "exopd", [])], BIT),
    Limit("mixed_teachers", [ONE_EXPERT], [(1, FULL, [])], BIT),
    Limit("mixed_teachers", [],
          [(0.5, FULL, ["teacher.model=expert_four"]), (0.5, FULL, ["teacher.model=expert_five"])]),
    # which tokens
    Limit("tip", ["terms.0.weights.0.share=1"], [(1, FULL, [])], BIT),
    Limit("tip_entropy", ["terms.0.weights.0.share=1"], [(1, FULL, [])], BIT),
    Limit("tip_q3", ["terms.0.weights.0.share=1"], [(1, FULL, [])], BIT),
    Limit("eopd", ["terms.1.weights.0.nats=100"], [(1, "ppo_clip", [])], BIT),
    Limit("eopd", ["terms.1.weights.0.nats=-1"],
          [(1, "ppo_clip", []), (1, FORWARD, ["terms.0.support={name: teacher_top_k, k: 16, renormalise: teacher}"])]),
    Limit("eopd", ["terms.1.weights.0.nats=-1", f"terms.1.support.k={V}"], [(1, "ppo_clip", []), (1, FORWARD, [])]),
    Limit("dasd", ["terms.0.advantage.beta=0"], [(1, "grpo", [PER_TOKEN])], BIT),
    Limit("iw_opd", ["terms.0.weights.0.largest=1"], [(1, OPD, [])], BIT),
    Limit("fire_opd", ["terms.0.rows.share=1", "terms.0.weights.0.student=0", "terms.0.weights.0.teacher=0"],
          [(1, "ppo_clip", [])], BIT),
    Limit("reopold", ["terms.0.advantage.share=1e-300", "terms.0.weights.0.share=1e-300", FIXED], [(1, OPD, [])], BIT),
    Limit("reopold", ["terms.0.advantage.share=1e-300", "terms.0.weights=[{name: high_entropy, share: 1}]", FIXED],
          [(1, OPD, [])], BIT),                                                    # the second phase
    Limit("fu_lsm", [EVERY], [(1, FULL, [])]),
    Limit("fu_lsm_masked", [], [(1, "fu_lsm", [])], BIT, world="nothing_special"),
    Limit("zhu_topk", [EVERY], [(1, FULL, [])], moved=False),
    Limit("zhu_topk", ["terms.0.support.k=4"], [(1, THINK + "only_student", RAW)], BIT),
    *(Limit(THINK + name, [EVERY], [(1, FULL, [])], moved=False)
      for name in ("only_student", "only_teacher", "intersection", "union")),
    Limit(THINK + "union", RAW, [(1, THINK + "only_student", RAW), (1, THINK + "only_teacher", RAW),
                                 (-1, THINK + "intersection", RAW)]),
    # long horizon
    Limit("stable_opd", ["terms.1.coefficient=0", "terms.2.coefficient=0"], [(1, "ppo_clip", [])], BIT),
    Limit("stable_opd", [HALF], [(1, "ppo_clip", [HALF]), (0.1, "sft", [HALF, "terms.0.rows=golden"]),
                                 (0.01, FULL, [HALF, "terms.0.target={name: reference, model: start}"])]),
    Limit("prune_opd", ["terms.0.weights.0.drop=0", "terms.0.weights.0.base=0"], [(1, THINK + "only_student", [])],
          BIT),
    Limit("prune_opd", ["terms.0.weights.0.drop=0"], [(1.5, THINK + "only_student", [])]),
    Limit("short_to_long", [], [(1, OPD, [])], BIT),                               # nothing repeats
    Limit("esr_100", [], [(1, FULL, [])], BIT),                                    # of what is written, the loss
    # rewards and a teacher
    Limit("scope", FLAT, [(1 / 3, OPD, ["terms.0.reduction=rollout_sum"])], world="all_wrong"),
    Limit("scope", FLAT, [(-1 / 3, "fixed_negative_advantage", ["terms.0.reduction=rollout_sum"])], world="all_right"),
    *(Limit(name, ["terms.0.advantage.beta=0"], [(1, "grpo", [PER_TOKEN])], BIT)
      for name in ("kdrl", "kdrl_masked", "kdrl_annealed", "hdpo")),
    Limit("kdrl", ["terms.0.advantage={name: mixed, beta: 1, reward: 0}"], [(1, "ppo_clip", [])], BIT),
    Limit("kdrl_annealed", ["terms.0.advantage.beta=0.02"], [(1, "kdrl", [])], BIT),
    *(Limit(name, ["terms.0.advantage.beta=0.02"], [(1, "kdrl", [])], BIT, world="all_wrong")
      for name in ("kdrl_masked", "hdpo")),
    *(Limit(name, [], [(1, "grpo", [PER_TOKEN])], BIT, world="all_right") for name in ("kdrl_masked", "hdpo")),
    Limit("mopd_reward", ["terms.0.advantage.reward=0", "terms.0.estimator=policy_gradient"],
          [(1, "routed_teachers", [])], BIT),
    Limit("mopd_reward", ["terms.0.advantage.beta=0", ONE_EXPERT], [(1, "grpo", [PER_TOKEN])], BIT),
    Limit("rlsd", ["terms.0.advantage.share=0"], [(1, "grpo", [PER_TOKEN])], BIT),
    Limit("trrd", ["terms.0.estimator.share=1"], [(1, "grpo", [PER_TOKEN])], BIT),
    Limit("srpo", ["terms.0.rows.threshold=-1", "terms.1.rows.threshold=-1"], [(1, "grpo", [PER_TOKEN])], BIT),
    Limit("srpo", ["terms.0.rows.threshold=2", "terms.1.rows.threshold=2", "terms.1.weights.0.beta=0"],
          [(1, "sdpo", ["terms.0.weights=[uniform]"])], BIT),
    Limit("opd_then_rl", ["terms.0.weights=[uniform]", "terms.0.denominator=valid"], [(1, "ppo_clip", [])], BIT),
    Limit("sft_then_opd", [], [(1, "sft", [])], BIT),
    # signal and routing
    Limit("aopd", [f"terms.{i}.weights.0.above=1" for i in (0, 1)], [(1, "ppo_clip", [])], BIT),
    Limit("aopd", [*(f"terms.{i}.weights.0.above=-1" for i in (0, 1)), f"terms.1.support.k={V}"], [(1, FORWARD, [])]),
    Limit("tropd", [f"terms.{i}.weights.0.limit=1e9" for i in (0, 1)], [(1, OPD, [])], BIT),
    Limit("tropd", [*(f"terms.{i}.weights.0.limit=0" for i in (0, 1)), f"terms.1.support.k={V}"], [(1, FORWARD, [])]),
    Limit("top_d", ["terms.0.advantage={name: proximal_gap, share: 1, future: false, standardise: false}"],
          [(1, "ppo_clip", [])], BIT),
    Limit("open_mopd", ["terms.0.reduction=token"], [(1, THINK + "only_student", ["teacher.model=routed"])], BIT),
    Limit("open_mopd", [], [(1, THINK + "only_student", ["teacher.model=routed"])], BIT, world="four"),
    Limit("opsa", ["terms.0.advantage.power=0"], [(1, "fixed_negative_advantage", [])], BIT),
    Limit("trust_routed", trusted_from(0), [(1, FULL, [])], BIT),
    Limit("trust_routed", trusted_from(2), [(1, "grpo", [PER_TOKEN])], BIT),
    Limit("trust_routed", [*trusted_from(2), PAIRS], [(1, "grpo", [PER_TOKEN, PAIRS]),
                                                 (1, FORWARD, [PAIRS, "terms.0.rows=golden"])]),
    # curriculum
    Limit("paced", ["terms.0.weights.0.right=0", "terms.0.weights.0.wrong=0"], [(1, FORWARD, [])], BIT),
    Limit("paced", [], [], 0.0, world="all_right"),                                # nothing is left to learn
    # rewards of teachers' rollouts too
    Limit("luffy", [], [(1, "grpo", [PER_TOKEN])], BIT),                           # of the student's own
    Limit("luffy", [PAIRS], [(19 / 37, "grpo", [PER_TOKEN, PAIRS]),
                             (18 / 37, "grpo", [PER_TOKEN, PAIRS, "terms.0.rows=golden",
                                                "terms.0.estimator=shaped_policy_gradient"])]),
    # MiniLLM
    Limit("minillm", ["terms.0.advantage=return_to_go", "terms.0.estimator=policy_gradient", "terms.1.coefficient=0",
                      OURS], [(1, "opd_return_to_go", [])], 20 * SINGLE),     # sums of gaps
    Limit("minillm", ["terms.0.coefficient=0"], [(1, FULL, [])], BIT),
    # controls
    Limit("fixed_negative_advantage", ["terms.0.advantage.value=1"], [(1, "sft", [OURS])], moved=False),
    Limit("shuffled_teacher", [], [(1, OPD, [])], BIT, world="token_7"),           # one gap has one order
    Limit("shifted_teacher", [], [(1, OPD, [])], BIT, world="one_token"),
    Limit("self_as_teacher", [], [], 1e-12),
    Limit("self_as_teacher", ["teacher={model: teacher, refresh: frozen}"], [(1, OPD, [])], BIT),
    Limit("random_teacher", ["teacher.model=teacher"], [(1, FULL, [])], BIT),
]

EXTRAPOLATED = "terms.0.target={{name: extrapolated, scale: {}, reference: {}}}"
MEANS = [  # variant, whose distribution the one token written has, what the gradient's mean under it is
    (OPD, "live", [(1, FULL, [])]),
    ("ppo_clip", "live", [(1, FULL, [])]),
    ("vopd", "live", [(1, FULL, [])]),
    ("opd_return_to_go", "live", [(1, FULL, [])]),
    ("gopd", "live", [(1, FULL, [EXTRAPOLATED.format(0.5, "start")])]),
    ("exopd", "live", [(1, FULL, [EXTRAPOLATED.format(1.25, "start")])]),
    ("exopd_corrected", "live", [(1, FULL, [EXTRAPOLATED.format(1.25, "teacher_start")])]),
    ("exopd_experts", "live", [(1, FULL, [EXTRAPOLATED.format(1.25, "start"), "teacher.model=routed"])]),
    ("routed_teachers", "live", [(1, FULL, ["teacher.model=routed"])]),
    ("fixed_negative_advantage", "live", []),
    ("sft", "teacher", [(1, "supervised_kd", [])]),
]

PHASES = [  # variant whose schedule ends in the terms of another
    ("opd_then_rl", "grpo", [PER_TOKEN]),
    ("sft_then_opd", OPD, []),
    ("paced", FULL, ["terms.0.weights=[pass_rate]"]),
]

RECIPES = [  # these differ in who writes or rewrites (see test_rewriting): in the limit the whole recipe is the other's
    ("seqkd", ["rollout.writers.0.temperature=1.0"], "sft", []),
    ("supervised_kd", [OURS, "terms.0.rows=sampled"], FORWARD, []),
    ("imitkd", [OURS, "terms.0.rows=sampled", FIXED], FORWARD, []),
    ("imitkd", ["rollout.writers=[dataset]", FIXED], "supervised_kd", []),
    ("gkd", ["rollout.writers=[dataset]", PER_TOKEN, "terms.0.divergence=forward_kl"], "supervised_kd", []),
    *((name, ["refine=[]", "terms.0.rows=sampled"], FORWARD, []) for name in ("trd", "trd_failures")),
    ("skd", UNREFINED, FORWARD, ["terms.0.reduction=sequence"]),                   # see test_interleaving
    ("skd_reverse_kl", UNREFINED, FULL, ["terms.0.reduction=sequence"]),
    ("relay_opd", ["refine=[]", "terms.0.rows=sampled"], FULL, []),
    ("esr_100", [OURS], FULL, []),                                                 # see test_writers
    *((name, [OURS, FIXED], OPD, []) for name in ("fast_opd", "popd")),
    ("trd_solution", ["refine=[]", "pair.context_tokens=320"], FORWARD, [self_teacher("same"), "terms.0.rows=all"]),
]
