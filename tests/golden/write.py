"""`python -m tests.golden.write`: write the golden file of every event type, and of every format of a batch, that has none
yet, and add to the form of every event type what came to it."""

import base64
import json
from pathlib import Path
from typing import Any

from claw_r1.codec import encode, event_type
from claw_r1.events import EVENTS
from tests.golden import rich_batch
from tests.golden.examples import EXAMPLES
from tests.golden.form import form_of, grown

FOLDER = Path(__file__).parent / "events"
BATCHES = Path(__file__).parent / "batches"
FORMS = Path(__file__).parent / "forms"


def main() -> None:
    for event in EXAMPLES:
        path = FOLDER / f"{event_type(event)}.json"
        if path.exists():
            continue
        record = encode(event, source="golden", key=b"key", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
        document = {
            "headers": [[name, base64.b64encode(value).decode()] for name, value in record.headers],
            "value": base64.b64encode(record.value).decode(),
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"wrote {path.name}")
    for kind, model in EVENTS.items():
        path = FORMS / f"{kind}.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        if (form := grown(before, form_of(model))) != before:
            path.write_text("\n".join(lay_out(form)) + "\n")
            print(f"wrote {path.name}")
    for name in rich_batch.FORMATS:
        path = BATCHES / f"{name}.json"
        if not path.exists():
            path.write_text("\n".join(lay_out(rich_batch.make(name))) + "\n")
            print(f"wrote {path.name}")


def lay_out(value: Any, depth: int = 0) -> list[str]:
    """The lines of a JSON document in which an array, or what is short, is one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) <= 110 or not isinstance(value, dict | list) or (isinstance(value, dict) and "dtype" in value):
        return [" " * depth + line]
    if isinstance(value, list) and not any(isinstance(one, dict) for one in value):
        return [" " * depth + line]
    if isinstance(value, dict):
        ends, parts = "{}", [(json.dumps(name) + ": ", one) for name, one in value.items()]
    else:
        ends, parts = "[]", [("", one) for one in value]
    lines = [" " * depth + ends[0]]
    for number, (name, one) in enumerate(parts):
        inner = lay_out(one, depth + 1)
        inner[0] = " " * (depth + 1) + name + inner[0].lstrip()
        inner[-1] += "," if number < len(parts) - 1 else ""
        lines += inner
    return [*lines, " " * depth + ends[1]]


if __name__ == "__main__":
    main()
