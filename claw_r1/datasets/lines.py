"""A fact becomes one line of JSON, and a line the same fact again.

Pure. A line is a CloudEvents event in the JSON format (https://github.com/cloudevents/spec/blob/main/cloudevents/formats/json-format.md)
whose `data` is the record's body: what is None is left out, packed arrays and hashes are base64, JSON texts are texts, and
numbers that JSON cannot say are the texts NaN, Infinity and -Infinity.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from claw_r1.codec import encode_body, event_type
from claw_r1.errors import InvalidRecord
from claw_r1.events import EVENTS, GroupFact

JSON_TEXTS: Final = ("new_messages", "reply", "request")
"""Fields of a step that hold JSON already."""
PACKED: Final = ("new_prompt_ids", "response_ids", "rollout_log_probs", "prefix_hash", "values")
MODELS: Final = {event_type(model): model for model in EVENTS.values() if issubclass(model, GroupFact)}
"""Facts of groups, by CloudEvents type."""


def write_line(fact: GroupFact) -> bytes:
    """The fact as a line, with its end. Raises InvalidRecord("unencodable")."""
    body = msgspec.msgpack.decode(encode_body(fact))
    for name in JSON_TEXTS:
        if name in body:
            body[name] = body[name].decode()
    document = {
        "specversion": "1.0",
        "id": fact.fact_id,
        "type": event_type(fact),
        "source": "claw/export",
        "subject": f"{fact.run_id}/{fact.prompt_uid}",
        "time": datetime.fromtimestamp(fact.at, UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": _sayable(body),
    }
    return msgspec.json.encode(document) + b"\n"


def _sayable(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case dict():
            return {name: _sayable(one) for name, one in value.items()}
        case list():
            return [_sayable(one) for one in value]
    return value


def read_line(document: Mapping[str, Any]) -> GroupFact:
    """The fact of a line. Raises InvalidRecord with reason unknown_type or undecodable."""
    model = MODELS.get(str(document.get("type")))
    data = document.get("data")
    if model is None:
        raise InvalidRecord("unknown_type", f"{document.get('type')!r} is not a type of fact that this version knows")
    if not isinstance(data, dict):
        raise InvalidRecord("undecodable", "`data` is not an object")
    body = dict(data)
    try:
        for name in JSON_TEXTS:
            if name in body:
                body[name] = body[name].encode()
        for name in PACKED:
            if name in body:
                body[name] = base64.b64decode(body[name], validate=True)
        return model.model_validate(body)
    except (ValidationError, binascii.Error, AttributeError, TypeError, ValueError) as error:
        raise InvalidRecord("undecodable", f"a {model.TYPE} that does not decode: {error}") from error
