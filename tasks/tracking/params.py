"""A recipe as MLflow's parameters: what tells runs apart, a line a setting. recipe.yaml holds the whole recipe."""
import functools
import json
import re

from tasks.opd.recipe import loading
from tasks.opd.recipe.catalogue import shown
from tasks.opd.recipe.schedule import granted, start_of

ALWAYS = ("name", "seed", "rounds", "evaluate_every", "pair.name", "prompts.name", "rollout", "slot", "loss",
          "train.learning_rate", "train.schedule", "train.epochs", "train.batch_rollouts", "train.lora",
          "budget")
NONE = "none"                           # of a slot that is not used
KEY, VALUE = 250, 500                   # characters that one may have
TERMS = " | "                           # between what several terms say


def params_of(recipe: dict) -> dict[str, str]:
    """What papers differ in (ALWAYS, and below it), and of everything else what is not as in configs/base.yaml."""
    usual = base()
    return {key: value for key, value in settings_of(recipe).items()
            if is_below(key, ALWAYS) or usual.get(key) != value}


def settings_of(recipe: dict) -> dict[str, str]:
    """A recipe's settings but for `about`; what slots say under `slot.`, the same keys for every variant."""
    rest = {key: value for key, value in recipe.items()
            if key not in ("about", "teacher", "refine", "terms", "schedule", "controllers")}
    rest["budget"] = " ".join(map(json.dumps, reversed(granted(recipe["budget"]) or (NONE,)))).replace('"', "")
    rest["rollout"] = {key: value for key, value in recipe["rollout"].items() if key not in ("writers", "filters")}
    return flat(rest) | {f"slot.{name}": text[:VALUE] for name, text in slot_texts(recipe).items()}


def slot_texts(recipe: dict) -> dict[str, str]:
    """The choice of every slot as a short text; what terms say of one is said once where they agree."""
    chosen = {"writers": recipe["rollout"]["writers"], "filters": recipe["rollout"]["filters"],
              "refine": recipe["refine"], "teacher": recipe["teacher"]["model"],
              "refresh": recipe["teacher"]["refresh"], "context": recipe["teacher"]["context"],
              "controllers": recipe["controllers"]}
    by_term = {name: [term_text(name, term[name]) for term in recipe["terms"]] for name in recipe["terms"][0]}
    changes = [f"from {start_of(patch)}: " + ", ".join(f"{key} {shown(value)}" for key, value in patch["set"].items())
               for patch in recipe["schedule"]]
    return {name: shown(value) or NONE for name, value in chosen.items()} \
        | {name: said[0] if len(set(said)) == 1 else TERMS.join(said) for name, said in by_term.items()} \
        | {"schedule": "; ".join(changes) or NONE}


def term_text(name: str, value) -> str:
    """What a term says of one of its settings; NONE for nothing."""
    if name == "clip":
        return NONE if value["at"] == NONE else f"{value['at']} {value['limit']}"
    return NONE if value is None else shown(value) or NONE


@functools.cache
def base() -> dict[str, str]:
    """configs/base.yaml's own settings."""
    return settings_of(loading.load(loading.CONFIGS / "base.yaml").model_dump(mode="json"))


def is_below(key: str, tops: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of these, or lies below one."""
    return any(f"{key}.".startswith(f"{top}.") for top in tops)


def flat(value, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and short texts; a slot, or a list of slots, is one: `jsd(beta 0.5)`."""
    if is_slot(value) or isinstance(value, list) and value and all(map(is_slot, value)):
        return {name_of(prefix): shown(value)[:VALUE]}
    nested = dict(enumerate(value)) if isinstance(value, list) else value
    if not nested or not isinstance(nested, dict):
        text = value if isinstance(value, str) else json.dumps(value)
        return {name_of(prefix): text[:VALUE]}
    parts = [flat(item, f"{prefix}.{name}".lstrip(".")) for name, item in nested.items()]
    return {key: text for part in parts for key, text in part.items()}


def is_slot(value) -> bool:
    """Whether plain data is a slot: a name with parameters."""
    return isinstance(value, dict) and {"name", "params"} <= value.keys()


def name_of(key: str) -> str:
    """A key as MLflow allows it."""
    return re.sub(r"[^\w.\- /]", "_", key)[:KEY]


def difference(params: dict[str, str], others: dict[str, str], most: int = 3) -> str:
    """What one run's parameters say otherwise than another's, in a few words: `rounds=4 train.learning_rate=0.0002`.

    Of more than `most` the others are counted: `+2`. Empty where nothing differs.
    """
    own = [f"{key}={params.get(key, 'base')}"[:60] for key in sorted(params | others)
           if params.get(key) != others.get(key)]
    return " ".join(own[:most] + ([f"+{len(own) - most}"] if len(own) > most else []))


def free_name(client, experiment: str, name: str, tags: dict[str, str], params: dict[str, str]) -> str:
    """The name of a run to be created: where its variant and seed have one already, with what differs from that."""
    asked = " and ".join(f"tags.{key} = '{tags[key]}'" for key in ("variant", "seed") if key in tags)
    there = client.search_runs([experiment], asked, order_by=["attributes.start_time ASC"]) if asked else []
    there = [run for run in there if "superseded" not in run.data.tags]
    if not there:
        return name
    name = f"{name} {difference(params, there[0].data.params)}".strip()
    return f"{name} {tags['config.sha256'][:6]}" if name in {run.info.run_name for run in there} else name
