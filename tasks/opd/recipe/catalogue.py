"""The variants as tables: for a terminal, and for configs/variants/README.md. Plain data in, text out; no torch.

A variant is what `opd variants --json` lists of it: name, paper, arxiv, idea, cost, placebo, reconstruction, slots, and
`differs`, what it says otherwise than configs/base.yaml.
"""
import json
import textwrap
from itertools import zip_longest
from typing import Any

from tasks.opd.recipe.schedule import start_of

OTHERS = ("name", "about", "seed", "rounds", "pair", "prompts", "benchmarks", "accepts")  # not what a variant is about
WIDTHS = {"name": 24, "paper": 24, "arXiv": 10, "idea": 46, "cost beyond vanilla OPD": 40, "rec": 3}  # 157 columns
LEGEND = "Below a variant: what differs from configs/base.yaml. rec: a value or formula was not found in the paper."
PREFACE = """# Variants

Made from the files in this folder by `opd variants --markdown > configs/variants/README.md`; a test keeps it in step.
What a variant says otherwise than [base.yaml](../base.yaml), which is vanilla on-policy distillation, stands under
"differs". The cost is what it takes beyond that. The placebo is the control a variant must beat before anything is
said for it. A reconstruction has a value or formula that was not found in the paper; the file's comment says which."""
COLUMNS = ("variant", "paper", "idea", "differs", "cost", "placebo", "reconstruction")


def differs(recipe: dict, base: dict) -> list[str]:
    """What a recipe, as plain data, says otherwise than another; `term 2: ...` where it has several terms."""
    terms = [differing(term, base["terms"][0]) for term in recipe["terms"]]
    described = terms[0] if len(terms) == 1 else [f"term {i}: {', '.join(parts)}" for i, parts in enumerate(terms, 1)]
    rest = {key: value for key, value in recipe.items() if key not in (*OTHERS, "terms", "schedule")}
    later = [f"from {start_of(patch)}: " + ", ".join(differing(patch["set"], {})) for patch in recipe["schedule"]]
    return differing(rest, base) + described + later


def differing(data: dict, base: dict) -> list[str]:
    """`key value` for every setting that is not the base's, dotted below it; what is null is left out."""
    out = []
    for key, value in data.items():
        if value is None or value == base.get(key):
            continue
        if isinstance(value, dict) and "name" not in value:
            out += [f"{key}.{part}" for part in differing(value, base.get(key) or {})]
        else:
            out.append(f"{key} {shown(value)}")
    return out


def shown(value: Any) -> str:
    """A value as a table shows it: a slot as `jsd(beta 0.5)`, a list with plus signs, anything else as JSON has it."""
    if isinstance(value, list):
        return " + ".join(map(shown, value))
    if not isinstance(value, dict) or "name" not in value:
        return value if isinstance(value, str) else json.dumps(value)
    plain = {"n": 1, "fraction": 1.0, "when": "always", "domains": []}  # of a writer
    given = {**{k: v for k, v in value.items() if k not in ("name", "params")}, **(value.get("params") or {})}
    inside = ", ".join(f"{k} {shown(v)}" for k, v in given.items() if v is not None and v != plain.get(k))
    return f"{value['name']}({inside})" if inside else value["name"]


def text(variants: list[dict]) -> str:
    """The table of `opd variants`: below 160 columns, long cells wrapped."""
    rows = [[v["name"], v["paper"], v["arxiv"] or "-", v["idea"], v["cost"], "yes" if v["reconstruction"] else ""]
            for v in variants]
    lines, wide = [], sum(WIDTHS.values()) + 2 * len(WIDTHS)
    for row, described in zip([list(WIDTHS), *rows], ["", *("; ".join(v["differs"]) for v in variants)]):
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, WIDTHS.values())]
        lines += ["  ".join(part.ljust(width) for part, width in zip(parts, WIDTHS.values())).rstrip()
                  for parts in zip_longest(*cells, fillvalue="")]
        lines += textwrap.wrap(described, wide - 4, initial_indent="    ", subsequent_indent="    ") + [""]
    return "\n".join([*lines, "", LEGEND])


def markdown(variants: list[dict]) -> str:
    """configs/variants/README.md, without the newline at its end: the methods, then the controls."""
    controls = [v for v in variants if v["paper"] == "control"]
    methods = [v for v in variants if v["paper"] != "control"]
    return "\n\n".join([PREFACE, f"## {len(methods)} methods", table(methods),
                        f"## {len(controls)} controls, which must not help", table(controls)])


def table(variants: list[dict]) -> str:
    """A Markdown table of variants, a row each."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(cells_of, variants)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def cells_of(variant: dict) -> tuple[str, ...]:
    """A variant's row, with links to its file and its paper."""
    name, arxiv = variant["name"], variant["arxiv"]
    paper = f"{variant['paper']}, [{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else variant["paper"]
    return (f"[{name}]({name}.yaml)", paper, variant["idea"], "; ".join(variant["differs"]) or "nothing",
            variant["cost"], variant["placebo"], "yes" if variant["reconstruction"] else "")
