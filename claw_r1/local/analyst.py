"""Whether an analyst may run a statement: the engine's own parse of it in, the text that may be run or a refusal out. Pure.

The engine in this process has no users, and an unguarded statement reaches the host's files and network. So only what is
listed is let through: kinds of nodes, relations of the pool, functions, formats, settings.

Invariants:
- what is judged is what is run: the engine's normal form of the statement (`formatQuery`), never the text as it came;
- the tree is believed only if it is whole: the children that it counts are there, and no name can forge a line of it;
- what the tree does not show (what APPLY calls, the names of CTEs, PREWHERE) is refused, or read from the normal form.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from claw_r1.local.functions import is_listed
from claw_r1.local.statement import StatementRefused, Token, read_tokens


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TABLES: Final = _words(
    """
    annotations calls cut_members cuts decisions group_events groups outcomes policies purges recipes rewards
    samples step_tokens steps token_stats trained trajectories trajectory_events trajectory_lookup
    """
)
"""Every one has a `run_id`, by which rows are filtered."""
VIEWS: Final = _words(
    """
    batch_staleness consumption effective_rewards lineage log_prob_mismatch lost_calls merging outcome_funnel
    """
)
PARAMETER_VIEWS: Final = _words("batch_steps contexts pass_rate trajectory_batches trajectory_steps")
"""Called like functions."""
READABLE: Final = frozenset({"system.settings", "system.one"})
"""What clients ask when they connect; it tells of the analyst's own connection."""

LIMITS: Final[Mapping[str, str]] = {
    "max_execution_time": "60",
    "timeout_overflow_mode": "throw",
    "max_memory_usage": str(2 * 2**30),
    "max_result_rows": "1000000",
    "max_result_bytes": str(256 * 2**20),
    "result_overflow_mode": "throw",
    "max_threads": "4",
    "max_temporary_data_on_disk_size_for_query": str(4 * 2**30),
    "function_range_max_elements_in_block": "10000000",
}
"""Of one statement of an analyst: seconds, bytes, rows, threads."""
RUN_SETTINGS: Final[Mapping[str, str]] = {
    "optimize_move_to_prewhere": "0",
    "query_plan_merge_filters": "0",
    "enable_join_runtime_filters": "0",
}
"""With rows filtered by run: no condition is tried on a row before the filter is, since its error would tell the row."""
SETTINGS: Final = re.compile(
    r"output_format_(?:arrow|csv|decimal|json|native|markdown|parquet|pretty|tsv|write)_\w+|date_time_output_format|extremes|join_use_nulls|limit|offset|max_block_size|readonly|"
    r"max_query_size|session_timezone|union_default_mode"
)
"""Settings that an analyst's request may carry; none of them names a file or lifts a limit."""
FORMATS: Final = _words(
    """
    Arrow ArrowStream CSV CSVWithNames CSVWithNamesAndTypes JSON JSONColumns JSONColumnsWithMetadata JSONCompact
    JSONCompactColumns JSONCompactEachRow JSONCompactEachRowWithNames JSONCompactEachRowWithNamesAndTypes
    JSONCompactStrings JSONEachRow JSONEachRowWithProgress JSONLines JSONObjectEachRow JSONStrings
    JSONStringsEachRow Markdown Native NDJSON Null ORC Parquet Pretty PrettyCompact PrettyCompactMonoBlock
    PrettyCompactNoEscapes PrettyMonoBlock PrettyNoEscapes PrettySpace RowBinary RowBinaryWithNames
    RowBinaryWithNamesAndTypes TabSeparated TabSeparatedRaw TabSeparatedWithNames TabSeparatedWithNamesAndTypes TSV
    TSVRaw TSVWithNames TSVWithNamesAndTypes Values Vertical XML
    """
)

_KINDS: Final = _words(
    """
    ArrayJoin Asterisk ColumnsExceptTransformer ColumnsRegexpMatcher ColumnsReplaceTransformer
    ColumnsReplaceTransformer::Replacement ColumnsTransformerList DescribeQuery ExpressionList Function Identifier
    InterpolateElement Literal OrderByElement QualifiedAsterisk QualifiedColumnsRegexpMatcher SampleRatio
    SelectIntersectExceptQuery SelectQuery SelectWithUnionQuery Subquery TableExpression TableIdentifier TableJoin
    TablesInSelectQuery TablesInSelectQueryElement WindowDefinition WindowListElement WithElement
    """
)
_IN: Final = _words("in notin nullin notnullin globalin globalnotin globalnullin globalnotnullin")
_LINE: Final = re.compile(
    r"(?P<indent> *)(?P<kind>[A-Za-z]+(?:::[A-Za-z]+)?)(?: (?P<name>.*?))??(?: \(alias [^()\n]*\))?"
    r"(?: \(children (?P<children>\d+)\))?"
)
_SHOW: Final = re.compile(r"SHOW TABLES(?: (?:NOT )?I?LIKE '(?:[^'\\]|\\.)*')?(?:\s+FORMAT (?P<format>\w+))?")
_QUOTED: Final = re.compile(r"`[\w @%.,:#+-]*`")
"""Names that need quotes: none of these characters ends a line, a bracket or a path."""
_PARAMETER: Final = re.compile(r"\{\s*(?P<name>\w+)\s*:(?P<type>[^}]*)\}")


@dataclass(frozen=True)
class Node:
    """A node of the engine's syntax tree."""

    kind: str
    name: str
    children: list["Node"] = field(default_factory=list)


def refuse(why: str) -> StatementRefused:
    """A refusal in ClickHouse's own form and number."""
    return StatementRefused(497, "ACCESS_DENIED", f"analyst: Not enough privileges. {why}")


def read_tree(text: str) -> Node:
    """The tree of an EXPLAIN AST. Raises StatementRefused if it is not whole."""
    stack: list[tuple[Node, int]] = []
    root: Node | None = None
    for line in text.rstrip("\n").split("\n"):
        match = _LINE.fullmatch(line)
        depth = len(match["indent"]) if match else 0
        while stack and len(stack) > depth:
            _check_whole(*stack.pop())
        if match is None or depth != len(stack) or (root is not None and depth == 0):
            raise refuse("The statement has a form that is not read here")
        node = Node(match["kind"], match["name"] or "")
        if stack:
            stack[-1][0].children.append(node)
        else:
            root = node
        stack.append((node, int(match["children"] or 0)))
    while stack:
        _check_whole(*stack.pop())
    if root is None:
        raise refuse("The statement is empty")
    return root


def _check_whole(node: Node, children: int) -> None:
    if len(node.children) != children:
        raise refuse("The statement has a form that is not read here")


def check_text(text: str, *, bound: bool) -> None:
    """Refuse in the normal form what a tree cannot be trusted with, before one is made. `bound`: rows are filtered by run."""
    tokens = list(read_tokens(text.encode()))
    for token in tokens:
        if token.text == b";":
            raise refuse("One statement at a time")
        if token.text.startswith(b"`") and not _QUOTED.fullmatch(token.text.decode()):
            raise refuse(f"The name {token.text.decode()[:80]} has characters that no name of the pool needs")
        if token.text.startswith((b"$", b'"')):
            raise refuse("Quotes of this kind are not read here")
        if bound and token.keyword == b"PREWHERE":
            raise refuse("PREWHERE is tried on rows of other runs: write WHERE")
    without = b" ".join(token.text for token in tokens if not token.text.startswith((b"'", b"`"))).decode()
    for parameter in _PARAMETER.finditer(without):
        if "identifier" in parameter["type"].lower():
            raise refuse("Parameters may be values, not names: {name:Identifier} is not allowed")


def judge(tree: Node, text: str, *, database: str, existing: Collection[str]) -> None:
    """Whether the statement whose tree and normal form these are may run in `database`. Raises StatementRefused.

    `existing` are the names of all relations of the database: a CTE may have no name of one that is not listed.
    """
    if tree.kind == "ShowTables":
        shown = _SHOW.fullmatch(text.strip())
        if shown is None or (shown["format"] or "TSV") not in FORMATS:
            raise refuse("Of SHOW only SHOW TABLES [LIKE '…'] is allowed")
        return
    if tree.kind not in ("SelectWithUnionQuery", "DescribeQuery"):
        raise refuse("Only SELECT, SHOW TABLES and DESCRIBE TABLE are allowed")
    relations = _Relations(database, existing, frozenset(_list_ctes(text)))
    for child in tree.children:
        if child.kind == "Identifier":
            if child.name not in FORMATS:
                raise refuse(f"FORMAT {child.name} is not allowed")
        elif child.kind not in ("ExpressionList", "TableExpression"):
            raise refuse("INTO OUTFILE and SETTINGS are not allowed")
        else:
            _judge_node(child, relations)


@dataclass(frozen=True)
class _Relations:
    database: str
    existing: Collection[str]
    ctes: Collection[str]

    def check_table(self, name: str) -> None:
        listed = TABLES | VIEWS
        if name in READABLE or name in listed or name in {f"{self.database}.{table}" for table in listed}:
            return
        if (
            "." not in name and name in self.ctes and name not in self.existing
        ):  # with a dot it is a table to the engine
            return
        raise refuse(f"{name[:80]} is no table or view of the pool {self.database}: SHOW TABLES lists what there is")

    def check_call(self, node: Node) -> None:
        """A relation that is called: a view with parameters, with values for them."""
        if node.name not in PARAMETER_VIEWS | {f"{self.database}.{view}" for view in PARAMETER_VIEWS}:
            raise refuse(
                f"{node.name[:80]} is no view of the pool {self.database}, and table functions are not allowed"
            )
        for lists in node.children:
            for argument in lists.children:
                kinds = [part.kind for parts in argument.children for part in parts.children]
                if argument.name != "equals" or kinds != ["Identifier", "Literal"]:
                    raise refuse(f"{node.name[:80]} takes values: {node.name[:80]}(name = value)")


def _judge_node(node: Node, relations: _Relations) -> None:
    if node.kind not in _KINDS:
        raise refuse(f"{node.kind} is not allowed in a statement")
    if node.kind == "TableIdentifier":
        relations.check_table(node.name)
    if node.kind == "Function":
        if not is_listed(node.name):
            raise refuse(f"The function {node.name[:80]} is not allowed")
        if node.name.lower() in _IN:
            _judge_set(node, relations)
    for child in node.children:
        if node.kind == "TableExpression" and child.kind == "Function":
            relations.check_call(child)
        elif node.kind == "SelectWithUnionQuery" and child.kind != "ExpressionList":
            raise refuse("FORMAT, INTO OUTFILE and SETTINGS are not allowed within a statement")
        else:
            _judge_node(child, relations)


def _judge_set(node: Node, relations: _Relations) -> None:
    """What stands behind IN as a bare name is a table to the engine."""
    for lists in node.children:
        for name in lists.children[1:]:
            if name.kind == "Identifier":
                relations.check_table(name.name)


def _list_ctes(text: str) -> Iterator[str]:
    """Names that the normal form gives to subqueries: `name AS (`, `name (columns) AS (`, AS MATERIALIZED."""
    tokens = list(read_tokens(text.encode()))
    for index, token in enumerate(tokens):
        if token.keyword != b"AS" or index == 0:
            continue
        follows = [later.keyword for later in tokens[index + 1 : index + 3]]
        if follows[:1] == [b"("] or follows == [b"MATERIALIZED", b"("]:
            yield _named(tokens, index - 1).decode().strip("`")


def _named(tokens: list[Token], index: int) -> bytes:
    """The name at `index`, or before the columns in brackets that end there."""
    if tokens[index].text != b")":
        return tokens[index].text
    depth = tokens[index].depth
    opened = max(at for at in range(index) if tokens[at].text == b"(" and tokens[at].depth == depth)
    return tokens[opened - 1].text if opened else b""
