"""What a recipe's model folders on this machine say without their weights: whether there is a chat template."""
import json
from pathlib import Path

from tasks.opd.recipe.checks.servers import key_of
from tasks.opd.recipe.requirements import needs
from tasks.opd.recipe.schema import Recipe

CONFIG, TEMPLATES = "tokenizer_config.json", ("chat_template.jinja", "chat_template.json", "chat_templates")


def templates_missing(recipe: Recipe) -> list[str]:
    """Folders of models that this recipe reads and that have no chat template, a note each."""
    makers = {"student": recipe.pair.student, "teacher": recipe.pair.teacher, **recipe.pair.others}
    places = {name: Path(makers[name].params["path"]).expanduser() for name in ("student", *sorted(needs(recipe)))
              if name in makers and isinstance(makers[name].params.get("path"), str)}
    return [f"{key_of(name)}: {place} has no chat template: questions are given as plain text"
            for name, place in places.items() if (place / CONFIG).is_file() and not has_template(place)]


def has_template(place: Path) -> bool:
    """Whether a tokenizer's folder holds a chat template, in a file of its own or in its config."""
    own = any((place / name).exists() for name in TEMPLATES)
    return own or bool(json.loads((place / CONFIG).read_text(encoding="utf-8")).get("chat_template"))
