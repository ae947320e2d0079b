"""The judgement of an analyst's statement, on trees as the engine prints them."""

import pytest

from claw_r1.local.analyst import check_text, judge, read_tree
from claw_r1.local.functions import AGGREGATES, FUNCTIONS, is_listed
from claw_r1.local.statement import StatementRefused

SELECT = """SelectWithUnionQuery (children 1)
 ExpressionList (children 1)
  SelectQuery (children 2)
   ExpressionList (children 1)
    {what}
   TablesInSelectQuery (children 1)
    TablesInSelectQueryElement (children 1)
     TableExpression (children 1)
      {table}
"""
STEPS = "TableIdentifier steps"


def allows(tree: str, text: str = "SELECT 1 FROM steps", existing: tuple[str, ...] = ("steps", "migrations")) -> bool:
    try:
        judge(read_tree(tree), text, database="claw", existing=existing)
    except StatementRefused:
        return False
    return True


@pytest.mark.parametrize(
    ("table", "allowed"),
    [
        ("TableIdentifier steps", True),
        ("TableIdentifier claw.steps (alias s)", True),
        ("TableIdentifier lineage", True),
        ("TableIdentifier system.settings", True),
        ("TableIdentifier migrations", False),
        ("TableIdentifier other.steps", False),
        ("TableIdentifier system.tables", False),
        ("TableIdentifier default../etc/passwd", False),
        ("TableIdentifier contexts", False),
        ("Function file (children 1)\n       ExpressionList (children 1)\n        Literal 'x'", False),
        ("Function numbers (children 1)\n       ExpressionList (children 1)\n        Literal UInt64_1", False),
        ("Function length (children 1)\n       ExpressionList (children 1)\n        Literal UInt64_1", False),
    ],
)
def test_only_relations_of_the_pool_are_read(table: str, allowed: bool) -> None:
    assert allows(SELECT.format(what="Asterisk", table=table)) == allowed


def a_call(view: str, value: str) -> str:
    lines = [
        f"Function {view} (children 1)",
        "       ExpressionList (children 1)",
        "        Function equals (children 1)",
        "         ExpressionList (children 2)",
        "          Identifier trajectory_uid",
        f"          {value}",
    ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("call", "allowed"),
    [
        (a_call("contexts", "Literal 'a'"), True),
        (a_call("claw.trajectory_steps", "Literal 'a'"), True),
        (a_call("lineage", "Literal 'a'"), False),
        (a_call("other.contexts", "Literal 'a'"), False),
        (a_call("contexts", "Identifier run_id"), False),
    ],
)
def test_views_with_parameters_take_values(call: str, allowed: bool) -> None:
    assert allows(SELECT.format(what="Asterisk", table=call)) == allowed


@pytest.mark.parametrize(
    ("what", "allowed"),
    [
        ("Function quantile (children 1)\n     ExpressionList (children 1)\n      Identifier n", True),
        ("Function file (alias f) (children 1)\n     ExpressionList (children 1)\n      Literal 'x'", False),
        ("Function in (children 1)\n     ExpressionList (children 2)\n      Literal 'x'\n      Identifier steps", True),
        (
            "Function in (children 1)\n     ExpressionList (children 2)\n      Literal 'x'\n      Identifier f.csv",
            False,
        ),
        (
            "Function IN (children 1)\n     ExpressionList (children 2)\n      Literal 'x'\n      Identifier f.csv",
            False,
        ),
        ("Asterisk (children 1)\n     ColumnsTransformerList (children 1)\n      ColumnsApplyTransformer", False),
        ("Set", False),
        ("QueryParameter x:String", False),
        ("NewKindOfNode", False),
    ],
)
def test_only_known_nodes_and_listed_functions_pass(what: str, allowed: bool) -> None:
    assert allows(SELECT.format(what=what, table=STEPS)) == allowed


@pytest.mark.parametrize(
    ("text", "existing", "allowed"),
    [
        ("WITH c AS (SELECT 1) SELECT * FROM c", (), True),
        ("WITH c(a, b) AS (SELECT 1, f((2))) SELECT * FROM c", (), True),
        ("WITH c AS MATERIALIZED (SELECT 1) SELECT * FROM c", (), True),
        ("WITH `c` AS (SELECT 1) SELECT * FROM c", (), True),
        ("WITH c AS (SELECT 1) SELECT * FROM c", ("c",), False),
        ("SELECT 'c AS (' FROM c", (), False),
    ],
)
def test_a_cte_is_read_unless_its_name_could_mean_another_table(
    text: str, existing: tuple[str, ...], allowed: bool
) -> None:
    assert allows(SELECT.format(what="Asterisk", table="TableIdentifier c"), text, existing) == allowed


@pytest.mark.parametrize(
    ("root", "text", "allowed"),
    [
        ("ShowTables", "SHOW TABLES", True),
        ("ShowTables", "SHOW TABLES NOT ILIKE 'a\\'b%'", True),
        ("ShowTables (children 1)\n Identifier JSON", "SHOW TABLES\nFORMAT JSON", True),
        ("ShowTables (children 1)\n Identifier Template", "SHOW TABLES\nFORMAT Template", False),
        ("ShowTables", "SHOW TABLES LIKE 'a'\nSETTINGS x = 1", False),
        ("ShowTables", "SHOW DATABASES", False),
        ("ShowTables (children 1)\n Identifier system", "SHOW TABLES FROM system", False),
        ("DescribeQuery (children 1)\n TableExpression (children 1)\n  TableIdentifier steps", "", True),
        ("DescribeQuery (children 1)\n TableExpression (children 1)\n  TableIdentifier a.b", "", False),
        ("DescribeQuery (children 2)\n TableExpression (children 1)\n  TableIdentifier steps\n Set", "", False),
        ("InsertQuery", "INSERT INTO steps SELECT 1", False),
        ("Explain EXPLAIN AST", "EXPLAIN AST SELECT 1", False),
        ("SelectWithUnionQuery (children 1)\n Identifier JSON", "", True),
        ("SelectWithUnionQuery (children 1)\n Identifier Template", "", False),
        ("SelectWithUnionQuery (children 1)\n Literal '/tmp/x'", "", False),
        ("SelectWithUnionQuery (children 1)\n Set", "", False),
    ],
)
def test_only_reading_statements_without_clauses_of_their_own_pass(root: str, text: str, allowed: bool) -> None:
    assert allows(root, text) == allowed


@pytest.mark.parametrize(
    "tree",
    [
        "",
        "SelectWithUnionQuery (children 2)\n ExpressionList",
        "SelectWithUnionQuery\n ExpressionList",
        "SelectWithUnionQuery (children 1)\n  ExpressionList",
        "SelectWithUnionQuery\nSelectWithUnionQuery",
        "SelectWithUnionQuery (children 1)\n Literal 'a'\n)",
    ],
)
def test_a_tree_that_is_not_whole_is_not_believed(tree: str) -> None:
    with pytest.raises(StatementRefused, match="not read here"):
        read_tree(tree)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1; SELECT 2",
        "SELECT 1 AS `a\\nFunction b`",
        "SELECT 1 AS `a (children 3)`",
        "SELECT * FROM `/etc/passwd`",
        "SELECT * FROM {t:Identifier}",
        "SELECT * FROM { t : identifier }",
        "SELECT $$a$$",
        "SELECT * FROM steps PREWHERE 1",
    ],
)
def test_texts_that_a_tree_could_not_be_trusted_with_are_refused(text: str) -> None:
    with pytest.raises(StatementRefused, match="ACCESS_DENIED"):
        check_text(text, bound=True)


def test_ordinary_texts_pass() -> None:
    check_text("SELECT ';', `Reward mean, p95`, {r:String}, '{t:Identifier}' FROM steps PREWHERE 1", bound=False)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("count", True),
        ("COUNT", True),
        ("countDistinct", True),
        ("sumIf", True),
        ("quantilesTDigestOrNullIf", True),
        ("dateDiff", True),
        ("file", False),
        ("FILE", False),
        ("fileIf", False),
        ("dictGet", False),
        ("sumState", False),
        ("sumMerge", False),
        ("arrayReduce", False),
        ("If", True),
        ("ArrayIf", False),
        ("", False),
    ],
)
def test_functions_are_listed_by_name(name: str, listed: bool) -> None:
    assert is_listed(name) == listed


def test_the_lists_do_not_overlap() -> None:
    assert not FUNCTIONS & AGGREGATES
