"""A recipe's filters: conditions over one vocabulary of fields, which become a Python predicate and a ClickHouse expression.

Invariant: both say the same of the same values. A condition on something unknown (None, NULL, a number that is not finite,
a key that the metadata lack) does not hold, whatever its op, but for `exists` with the value false. Numbers are compared as
64-bit floats, texts by their bytes. A text, a number and a flag are never equal, and never above or below one another.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic import Field as Described

Level = Literal["trajectory", "group"]
Kind = Literal["number", "text", "flag", "texts", "json"]
Op = Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "not_in", "has", "lacks", "exists"]
Scalar = StrictBool | StrictInt | StrictFloat | Annotated[StrictStr, StringConstraints(max_length=1000)]

_ORDERED: Final = ("lt", "le", "gt", "ge")
_EQUAL: Final = ("eq", "ne", "in", "not_in", "exists")
OPS: Final[dict[Kind, tuple[Op, ...]]] = {
    "number": ("eq", "ne", "lt", "le", "gt", "ge", "in", "not_in", "exists"),
    "text": ("eq", "ne", "in", "not_in", "exists"),
    "flag": ("eq", "ne", "exists"),
    "texts": ("has", "lacks", "exists"),
    "json": ("eq", "ne", "lt", "le", "gt", "ge", "in", "not_in", "exists"),
}
"""Which ops a kind of field takes. `has` and `lacks` ask a list for a text; a list exists if it holds something."""


@dataclass(frozen=True, slots=True)
class Field:
    """A word that a condition may use."""

    name: str
    level: Level
    kind: Kind
    doc: str
    in_pool: bool = True
    """Whether the pool tells it too, so that a dry run can say what the stream will do."""

    @property
    def reason(self) -> str:
        """Why something is discarded if the condition on this field does not hold."""
        return "filtered_" + self.name.removesuffix(".*")


FIELDS: Final = (
    Field("reward", "trajectory", "number", "effective reward under the recipe's weights"),
    Field("rewards.*", "trajectory", "number", "effective reward of one source, unweighted: `rewards.format`"),
    Field("self_reported", "trajectory", "flag", "whether one of its rewards came with the agent's own key"),
    Field("status", "trajectory", "text", "how it ended: completed, failed, aborted, truncated"),
    Field("tokens", "trajectory", "number", "prompt and response tokens of its longest complete step"),
    Field("response_tokens", "trajectory", "number", "sampled tokens of all its complete steps"),
    Field("turns", "trajectory", "number", "its complete steps"),
    Field(
        "chains", "trajectory", "number", "samples that it becomes: 1, unless contexts were rewritten", in_pool=False
    ),
    Field(
        "drift",
        "trajectory",
        "number",
        "steps whose prompt differs from what they were meant to go on from",
        in_pool=False,
    ),
    Field("capture", "trajectory", "flag", "whether all its steps were captured without a fault"),
    Field("policy_version", "trajectory", "number", "the oldest known version that sampled a token of the policy"),
    Field("policy_lag", "trajectory", "number", "versions between the oldest and the newest that sampled it"),
    Field("tags", "trajectory", "texts", "tags that decisions gave it, its steps or its group"),
    Field("quality", "trajectory", "number", "quality that a decision gave it, else its group"),
    Field("task_id", "trajectory", "text", "the item of the dataset"),
    Field("metadata.*", "trajectory", "json", "a value of its metadata, by its path: `metadata.env`, `metadata.a.b`"),
    Field("reward_mean", "group", "number", "mean reward of the rewarded trajectories"),
    Field("reward_std", "group", "number", "population standard deviation of their rewards; 0 if all are equal"),
    Field("reward_min", "group", "number", "smallest of their rewards"),
    Field("reward_max", "group", "number", "largest of their rewards"),
    Field("n_trajectories", "group", "number", "trajectories of the recipe's channel"),
    Field("n_rewarded", "group", "number", "those of them that have a reward"),
    Field("group_tokens", "group", "number", "sampled tokens of all of them"),
    Field("group_policy_lag", "group", "number", "versions between the oldest and the newest that sampled the group"),
)
"""The one vocabulary."""
_BY_NAME: Final = {field.name: field for field in FIELDS}

COLUMN_TYPES: Final[dict[Kind, str]] = {
    "number": "Nullable(Float64)",
    "text": "Nullable(String)",
    "flag": "Nullable(Bool)",
    "texts": "Array(String)",
    "json": "String",
}
"""The ClickHouse type of a field's column; `rewards` is a Map(String, Float64), `metadata` the JSON text of an object."""


def find_field(name: str) -> Field | None:
    """The field that a condition names; `metadata.env` is `metadata.*`."""
    head, dot, rest = name.partition(".")
    if not dot:
        return _BY_NAME.get(name)
    return _BY_NAME.get(f"{head}.*") if all(rest.split(".")) else None


class Condition(BaseModel):
    """What has to hold of a trajectory, or of a group, for it to be trained: `{field: tokens, op: le, value: 32768}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    field: str = Described(max_length=200)
    op: Op
    value: Annotated[Scalar | tuple[Scalar, ...], Described(validate_default=True)] = True

    @field_validator("field")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if find_field(name) is None:
            raise ValueError(f"there is no field {name!r}; there are {', '.join(_BY_NAME)}")
        return name

    @field_validator("op")
    @classmethod
    def _fits_the_field(cls, op: Op, info: ValidationInfo) -> Op:
        field = find_field(info.data.get("field", ""))
        if field is not None and op not in OPS[field.kind]:
            raise ValueError(f"{field.name} takes {', '.join(OPS[field.kind])}")
        return op

    @field_validator("value")
    @classmethod
    def _fits_the_op(cls, value: Any, info: ValidationInfo) -> Any:
        field, op = find_field(info.data.get("field", "")), info.data.get("op")
        if field is None or op is None:
            return value  # they have an error of their own
        if (op in ("in", "not_in")) != isinstance(value, tuple):
            raise ValueError("`in` and `not_in` take a list of values, the other ops take one")
        for one in value if isinstance(value, tuple) else (value,):
            _check_value(field, op, one)
        return value

    @property
    def level(self) -> Level:
        return self._field.level

    @property
    def reason(self) -> str:
        """Why what does not fulfil it is discarded; bounded in number."""
        return self._field.reason

    @property
    def _field(self) -> Field:
        field = find_field(self.field)
        assert field is not None, "validated"
        return field


def _check_value(field: Field, op: Op, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not _finite(value):
        raise ValueError("the number is too large, or is none")
    if isinstance(value, str) and not _is_text(value):
        raise ValueError("the text is not Unicode")
    kind = {"texts": "text"}.get(field.kind, field.kind)
    wanted = "flag" if op == "exists" else kind if kind != "json" else "number or text" if op in _ORDERED else "any"
    fits = {
        "number": number,
        "text": isinstance(value, str),
        "flag": isinstance(value, bool),
        "number or text": number or isinstance(value, str),
        "any": True,
    }[wanted]
    if not fits:
        raise ValueError(f"{field.name} with {op} takes a {wanted.replace('flag', 'true or false')}, not {value!r}")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


# --------------------------------------------------------------------------------------------------------------- Python

Values = Mapping[str, Any]
"""Field → value, by the heads of the names: `metadata` is an object, `rewards` a map; what is missing is unknown."""


def compile_python(condition: Condition) -> Callable[[Values], bool]:
    """The condition as a predicate of a trajectory's or a group's values."""
    field = condition._field
    op, wanted = condition.op, condition.value
    path = condition.field.split(".", -1 if field.kind == "json" else 1)
    if field.kind == "texts":
        return lambda values: _ask_list(values.get(field.name) or (), op, wanted)

    def holds(values: Values) -> bool:
        found = _at(values, path)
        if op == "exists":
            return (found is not None) is wanted
        value = _scalar(found)
        return value is not None and _compare(value, op, wanted)

    return holds


def first_failing(filters: Iterable[Condition], level: Level, values: Values) -> Condition | None:
    """The first condition of that level that does not hold."""
    return next((c for c in filters if c.level == level and not compile_python(c)(values)), None)


def _ask_list(found: Iterable[str], op: Op, wanted: Any) -> bool:
    texts = set(found)
    if op == "exists":
        return bool(texts) is wanted
    return (wanted in texts) is (op == "has")


def _at(values: Any, path: Iterable[str]) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _scalar(value: Any) -> bool | float | bytes | None:
    match value:
        case bool():
            return value
        case int() | float():
            return float(value) if _finite(value) else None
        case str():
            return value.encode() if _is_text(value) else None
    return None


def _compare(value: bool | float | bytes, op: Op, wanted: Any) -> bool:
    if op in _ORDERED:
        other: Any = _scalar(wanted)
        if type(other) is not type(value):
            return False
        mine: Any = value
        return bool({"lt": mine < other, "le": mine <= other, "gt": mine > other, "ge": mine >= other}[op])
    others = [_scalar(one) for one in (wanted if isinstance(wanted, tuple) else (wanted,))]
    equal = any(type(other) is type(value) and other == value for other in others)
    return equal is (op in ("eq", "in"))


# ------------------------------------------------------------------------------------------------------------------ SQL

_SIGNS: Final = {"eq": "=", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def compile_sql(condition: Condition) -> str:
    """The condition as a ClickHouse expression that is 0 or 1, over columns of COLUMN_TYPES named as the fields' heads."""
    field = condition._field
    op, wanted = condition.op, condition.value
    head, *path = condition.field.split(".")
    column = f"`{head}`"
    if field.kind == "texts":
        held = f"notEmpty({column})" if op == "exists" else f"has({column}, {sql_literal(wanted)})"
        return held if wanted is True or op == "has" else f"NOT {held}"
    if field.kind == "json":
        return _json_sql(column, path, op, wanted)
    if head == "rewards":
        name = sql_literal(".".join(path))
        column = f"if(mapContains({column}, {name}), toNullable({column}[{name}]), NULL)"
    known = f"isFinite(assumeNotNull({column}))" if field.kind == "number" else "1"
    known = f"({column} IS NOT NULL AND {known})"
    if op == "exists":
        return known if wanted else f"NOT {known}"
    value = f"assumeNotNull({column})"
    if field.kind == "number":
        value = f"toFloat64({value})"
    return f"({known} AND {_compare_sql(value, op, wanted)})"


def _compare_sql(value: str, op: Op, wanted: Any) -> str:
    if op in ("in", "not_in"):
        found = " OR ".join(f"{value} = {sql_literal(one)}" for one in wanted) or "0"
        return f"({found})" if op == "in" else f"NOT ({found})"
    return f"{value} {_SIGNS[op]} {sql_literal(wanted)}"


def _json_sql(column: str, path: list[str], op: Op, wanted: Any) -> str:
    place = ", ".join([column, *(sql_literal(name) for name in path)])
    kind = f"JSONType({place})"
    if op == "exists":
        return f"{kind} != 'Null'" if wanted else f"{kind} = 'Null'"
    if op in _ORDERED:
        return _json_one(place, kind, op, wanted)
    equal = " OR ".join(
        _json_one(place, kind, "eq", one) for one in (wanted if isinstance(wanted, tuple) else (wanted,))
    )
    equal = f"({equal or '0'})"
    if op in ("eq", "in"):
        return equal
    return f"({kind} IN ('String', 'Bool', 'Int64', 'UInt64', 'Double') AND NOT {equal})"


def _json_one(place: str, kind: str, op: Op, wanted: Any) -> str:
    if isinstance(wanted, bool):
        return f"({kind} = 'Bool' AND JSONExtractBool({place}) {_SIGNS[op]} {int(wanted)})"
    if isinstance(wanted, str):
        return f"({kind} = 'String' AND JSONExtractString({place}) {_SIGNS[op]} {sql_literal(wanted)})"
    numeric = f"{kind} IN ('Int64', 'UInt64', 'Double')"
    return f"({numeric} AND JSONExtractFloat({place}) {_SIGNS[op]} {sql_literal(wanted)})"


_ESCAPED: Final = re.compile(r"[\\'\x00-\x1f\x7f]")


def sql_literal(value: Any) -> str:
    """A value as ClickHouse writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(float(value))
    text = _ESCAPED.sub(lambda match: f"\\x{ord(match[0]):02x}", str(value))
    return f"'{text}'"
