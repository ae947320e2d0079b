"""`python -m tests.golden.write`: write the golden file of every event type that has none yet."""

import base64
import json
from pathlib import Path

from claw_r1.codec import encode, event_type
from tests.golden.examples import EXAMPLES

FOLDER = Path(__file__).parent / "events"


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


if __name__ == "__main__":
    main()
