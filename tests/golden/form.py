"""What an event is made of, field by field, and whether it only grew: what a version once had it keeps, as it was.

Old readers then read what is written today, and today's readers read what was ever written.
"""

from typing import Any

from claw_r1.events import Event

Form = dict[str, dict[str, dict[str, Any]]]
"""Model → field → whether it is required, and its type as a JSON schema; the event's own model and those of its parts."""
_TOLD = ("title", "description", "default", "examples")


def form_of(model: type[Event]) -> Form:
    schema = model.model_json_schema(mode="validation")
    parts = {model.__name__: schema, **schema.get("$defs", {})}
    return {
        name: {
            field: {"required": field in part.get("required", ()), "type": _bare(type_)}
            for field, type_ in part["properties"].items()
        }
        for name, part in parts.items()
        if "properties" in part
    }


def _bare(schema: Any) -> Any:
    """Without what says nothing of the values that are allowed."""
    if isinstance(schema, dict):
        return {name: _bare(value) for name, value in schema.items() if name not in _TOLD}
    return [_bare(one) for one in schema] if isinstance(schema, list) else schema


def list_breaks(before: Form, after: Form) -> list[str]:
    """What readers of the one could not read of the other's writers; none: it only grew."""
    found = []
    for model, fields in before.items():
        for field, was in fields.items():
            now = after.get(model, {}).get(field)
            if now is None:
                found.append(f"{model}.{field} is gone")
            elif now != was:
                found.append(f"{model}.{field} was {was} and is {now}")
        added = after.get(model, {}).keys() - fields.keys()
        found += [f"{model}.{field} is new and required" for field in sorted(added) if after[model][field]["required"]]
    return found


def grown(before: Form, after: Form) -> Form:
    """The form with what came to it; nothing of it changes."""
    return {
        model: {**before.get(model, {}), **{f: v for f, v in fields.items() if f not in before.get(model, {})}}
        for model, fields in {**before, **after}.items()
    }
