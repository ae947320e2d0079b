"""An analyst at the real engine: ordinary questions are answered, every way out of the pool is refused."""

import asyncio
import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from pydantic import SecretStr

from claw_r1.keys import Scope, Secrets, mint
from claw_r1.local import analyst
from claw_r1.local.functions import AGGREGATES, FUNCTIONS
from claw_r1.local.stack import running_stack
from sinks import migrations
from sinks.rows import TABLES
from tests.conftest import Stack
from tests.integration.test_local_clickhouse import HttpAnswer, send
from tests.pool import Pool
from tests.warm import claw

pytestmark = pytest.mark.stack

SECRET = "test:" + "s" * 32
PASSWORD = "operators' word"
MINE, OTHER = "mine", "other"


@dataclass(frozen=True)
class Front:
    """A front that asks everybody who they are, over a pool with two runs."""

    url: str
    """Without a password."""
    operator: str
    """With the operators' password."""
    host: str
    port: int
    secret_file: Path

    def ask(self, sql: str, *, run: str | None = MINE, **parameters: str) -> HttpAnswer:
        bound = {f"param_{name}": value for name, value in parameters.items()}
        return send(self.url, bound, sql.encode(), {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": a_key(run)})


def a_key(run: str | None) -> str:
    secrets = Secrets.of(SecretStr(SECRET))
    scope: Scope = "admin" if run is None else "analyst"
    return mint(secrets, scope=scope, now=time.time(), lifetime=3600, run_id=run)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("analyst")
    (folder / "secret.csv").write_text("TREASURE\n")
    env = {"CLAW_SECRET": SECRET, "CLAW_CLICKHOUSE_PASSWORD": PASSWORD}
    with running_stack(folder, processes=["clickhouse"], env=env) as stack:
        operator = stack.clickhouse
        asyncio.run(migrations.apply(operator, "claw"))
        url = operator.replace(f"default:{quote(PASSWORD, safe='')}@", "")
        port = int(url.rsplit(":", 1)[1])
        yield fill(Front(url, operator, "127.0.0.1", port, folder / "secret.csv"))


def fill(front: Front) -> Front:
    """Two runs with the same prompts, so that one granule holds rows of both."""
    text = (
        "fact_id, run_id, prompt_uid, trajectory_uid, step_id, status, response_len, metadata, topic, partition, offset"
    )
    rows = (
        "concat(r, toString(n)), r, 'p', concat(r, '-t'), toString(n), 'complete', n, if(r = 'mine', '7', 'TREASURE')"
    )
    source = f"(SELECT arrayJoin(['{MINE}', '{OTHER}']) AS r, arrayJoin(range(5)) AS n)"
    tokens = (
        "run_id, prompt_uid, trajectory_uid, step_id, new_prompt_ids, response_ids, rollout_log_probs, topic, offset"
    )
    lookup = "trajectory_uid, run_id, prompt_uid, topic, partition, offset"
    for statement in (
        f"INSERT INTO claw.steps ({text}) SELECT {rows}, 'e', 0, n FROM {source}",
        f"INSERT INTO claw.step_tokens ({tokens}) SELECT r, 'p', concat(r, '-t'), toString(n), [1, 2], [3], [-0.5], 'e', n"
        f" FROM {source}",
        f"INSERT INTO claw.trajectory_lookup ({lookup}) SELECT concat(r, '-t'), r, 'p', 'e', 0, 0 FROM {source}",
        f"INSERT INTO claw.rewards (fact_id, run_id, prompt_uid, source, value) SELECT r, r, 'p', 's', 1 FROM {source}",
        "CREATE TABLE claw.private (a String) ENGINE = MergeTree ORDER BY a",
        "INSERT INTO claw.private VALUES ('TREASURE')",
        "CREATE DATABASE elsewhere",
        "CREATE TABLE elsewhere.steps (a String) ENGINE = MergeTree ORDER BY a",
        "INSERT INTO elsewhere.steps VALUES ('TREASURE')",
        "CREATE FUNCTION my_function AS (x) -> file(x)",
    ):
        headers = {"X-ClickHouse-User": "default", "X-ClickHouse-Key": PASSWORD}
        answer = send(front.url, {}, statement.encode(), headers)
        assert answer.status == 200, answer.body
    return front


ORDINARY = [
    "SELECT 1",
    "SELECT status, count(), avg(response_len) FROM claw.steps GROUP BY status FORMAT PrettyCompact",
    "SELECT count() FROM steps FINAL",
    "SELECT about, outcome, reason, outcomes FROM outcome_funnel",
    "SELECT * FROM consumption LIMIT 1 UNION ALL SELECT * FROM claw.consumption LIMIT 1",
    "SELECT task_id, rate FROM pass_rate(threshold = 0.5)",
    "SELECT * FROM batch_steps(batch_id = 'x') AS s JOIN trajectory_batches(trajectory_uid = 'mine-t') AS b USING step_id",
    "SELECT * FROM batch_staleness, log_prob_mismatch",
    "SHOW TABLES",
    "SHOW TABLES LIKE 'step%'",
    "DESCRIBE TABLE steps",
    "DESCRIBE contexts(trajectory_uid = 'x')",
    "SELECT step_id, prompt_ids, response_ids FROM contexts(trajectory_uid = 'mine-t') FORMAT JSON",
    "SELECT * FROM claw.trajectory_steps(trajectory_uid = 'mine-t') FORMAT JSONEachRow",
    "WITH by_run AS (SELECT run_id, count() AS n FROM steps GROUP BY run_id), most(x) AS (SELECT max(n) FROM by_run)"
    " SELECT * FROM by_run WHERE n IN (SELECT x FROM most)",
    "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT sum(n) FROM t",
    "SELECT s.step_id, r.value FROM steps AS s FINAL LEFT JOIN effective_rewards AS r USING (run_id, prompt_uid) LIMIT 3",
    "SELECT run_id, row_number() OVER (PARTITION BY run_id ORDER BY offset ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS n,"
    " sum(response_len) OVER w FROM steps WINDOW w AS (ORDER BY offset) QUALIFY n < 3",
    "SELECT quantiles(0.5, 0.9)(response_len), uniqExactIf(step_id, status = 'complete'), count(DISTINCT run_id),"
    " topK(3)(status), argMax(step_id, offset) FILTER (WHERE response_len > 1) FROM steps",
    "SELECT toStartOfInterval(append_time, INTERVAL 1 MINUTE) AS t, count() FROM steps GROUP BY ALL ORDER BY t WITH FILL"
    " STEP 60 LIMIT 10",
    "SELECT arrayMap((i, p) -> i + p, response_ids, rollout_log_probs) FROM step_tokens ORDER BY step_id LIMIT 2 BY run_id",
    "SELECT * EXCEPT (metadata) REPLACE (upper(status) AS status) FROM steps ORDER BY ALL LIMIT 1 OFFSET 1",
    "SELECT COLUMNS('_len$') FROM steps WHERE status LIKE 'c%' AND response_len BETWEEN 1 AND 3",
    "SELECT JSONExtractString(metadata, 'env') AS \"Environment, all\", count() FROM steps GROUP BY 1 WITH ROLLUP",
    "SELECT run_id FROM steps UNION ALL SELECT run_id FROM rewards INTERSECT SELECT run_id FROM calls",
    "SELECT CASE WHEN 1 THEN 'a' ELSE 'b' END, now() - INTERVAL 1 HOUR, EXTRACT(YEAR FROM now()), trim(BOTH ' ' FROM ' a ')",
    "SELECT map('a', 1)['a'], (1, 2).1, [1, 2][1], '1'::UInt8, NULL IS NULL, 5 DIV 2, if(1 = 2, 3, 4)",
    "-- a comment; with words\nSELECT count() /* and ; more */ FROM steps;",
    "FROM steps SELECT count()",
]


@pytest.mark.parametrize("run", [MINE, None])
def test_ordinary_questions_are_answered(front: Front, run: str | None) -> None:
    for sql in ORDINARY:
        answer = front.ask(sql, run=run)
        assert answer.status == 200, f"{sql}: {answer.body.decode()}"
    uid = "SELECT count() FROM contexts(trajectory_uid = {uid:String}) WHERE run_id IN {runs:Array(String)}"
    assert front.ask(uid, run=run, uid="mine-t", runs="['mine']").body == b"5\n"


ESCAPES = [
    # files
    "SELECT * FROM file('{file}', 'LineAsString')",
    "SELECT file('{file}')",
    "SELECT FILE('{file}')",
    "SELECT * FROM `{file}`",
    'SELECT * FROM "{file}"',
    "SELECT * FROM default.`{file}`",
    'SELECT * FROM `default`."{file}"',
    "SELECT 'TREASURE' IN `{file}`",
    "SELECT 1 IN steps2",
    "SELECT p.* FROM (WITH `claw.private` AS (SELECT 1) SELECT 1) AS t, claw.private AS p",
    "WITH `claw.private` AS (SELECT 1 AS a) SELECT * FROM claw.private",
    "SELECT p.* FROM (WITH `elsewhere.steps` AS (SELECT 1) SELECT 1) AS t, elsewhere.steps AS p",
    "SELECT p.* FROM (WITH `system.tables` AS (SELECT 1) SELECT 1) AS t, system.tables AS p",
    "SELECT (WITH `elsewhere.steps` AS (SELECT 1) SELECT 1), 'TREASURE' IN elsewhere.steps",
    "SELECT arraySimilarity(range(1000000), range(1000000), range(1000000), range(1000000))",
    "SELECT arrayLevenshteinDistance(range(1000000), range(1000000))",
    "SELECT base58Encode(repeat('x', 5000000))",
    "SELECT arrayMap(x -> file(x), ['{file}'])",
    "SELECT * APPLY (x -> file('{file}')) FROM steps",
    "SELECT COLUMNS('run_id') APPLY(file) FROM steps",
    "SELECT * REPLACE (file('{file}') AS status) FROM steps",
    "SELECT my_function('{file}')",
    "SELECT 1 ORDER BY 1 WITH FILL FROM 1 TO length(file('{file}'))",
    "SELECT sum(1) OVER (ROWS BETWEEN length(file('{file}')) PRECEDING AND CURRENT ROW)",
    "SELECT quantile(length(file('{file}')))(1)",
    "SELECT 1 LIMIT length(file('{file}'))",
    "SELECT 1 QUALIFY file('{file}') != ''",
    "SELECT a FROM steps AS s JOIN (SELECT 1 AS a) AS t ON file('{file}') != ''",
    "WITH file('{file}') AS f SELECT f",
    "WITH steps AS (SELECT file('{file}')) SELECT * FROM steps",
    "SELECT (SELECT file('{file}'))",
    "SELECT 1 INTO OUTFILE '{file}.out'",
    "SELECT 1 INTO/**/OUTFILE '{file}.out' TRUNCATE FORMAT CSV",
    "SELECT 1 FORMAT Template SETTINGS format_template_row = '{file}'",
    "SELECT 1 FORMAT Template",
    "SELECT * FROM format(LineAsString, '{file}')",
    "SELECT formatRow('Template', 1)",
    "SELECT * FROM fileCluster('default', '{file}')",
    "SELECT * FROM dictionary('d')",
    "SELECT dictGet('d', 'a', 1)",
    "SELECT joinGet('claw.private', 'a', 1)",
    "SELECT catboostEvaluate('{file}', 1)",
    "SELECT filesystemAvailable()",
    # the network and other programs
    "SELECT * FROM url('http://127.0.0.1:{port}/ping', 'LineAsString')",
    "SELECT * FROM urlCluster('default', 'http://127.0.0.1:{port}/ping')",
    "SELECT * FROM s3('http://127.0.0.1:{port}/a')",
    "SELECT * FROM azureBlobStorage('x')",
    "SELECT * FROM hdfs('hdfs://127.0.0.1:1/a')",
    "SELECT * FROM iceberg('http://127.0.0.1:{port}/a')",
    "SELECT * FROM remote('127.0.0.1', claw.private)",
    "SELECT * FROM remoteSecure('127.0.0.1', claw, private)",
    "SELECT * FROM cluster('default', claw.private)",
    "SELECT * FROM clusterAllReplicas('default', claw, private)",
    "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "SELECT * FROM postgresql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "SELECT * FROM mongodb('127.0.0.1:1', 'a', 'b', 'c', 'd', 'e String')",
    "SELECT * FROM sqlite('{file}', 'a')",
    "SELECT * FROM executable('id', 'TSV', 'a String')",
    "SELECT * FROM python('x')",
    "SELECT * FROM Python(x)",
    "SELECT aiGenerate('x')",
    # other tables
    "SELECT * FROM private",
    "SELECT * FROM claw.private",
    "SELECT * FROM `claw`.`private`",
    "SELECT * FROM elsewhere.steps",
    "SELECT * FROM elsewhere . steps",
    "SELECT * FROM system.tables",
    "SELECT * FROM system.query_log",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM merge('claw', '.*')",
    "SELECT * FROM merge('.*')",
    "SELECT * FROM loop(claw.private)",
    "SELECT * FROM view(SELECT * FROM private)",
    "SELECT * FROM mergeTreeIndex(claw, private)",
    "SELECT * FROM (SELECT * FROM (SELECT * FROM private))",
    "SELECT 'TREASURE' IN (SELECT a FROM private)",
    "SELECT 'TREASURE' IN private",
    "SELECT 'TREASURE' NOT IN (claw.private)",
    "SELECT 'TREASURE' GLOBAL IN elsewhere.steps",
    "SELECT exists(SELECT * FROM private)",
    "WITH private AS (SELECT 1) SELECT * FROM private",
    "SELECT * FROM (WITH private AS (SELECT 1) SELECT 1) AS t, private",
    "WITH a AS (SELECT * FROM private) SELECT * FROM a",
    "SELECT * FROM steps AS s JOIN private AS p ON 1",
    "SELECT * FROM steps UNION ALL SELECT * FROM private",
    "SELECT 1 EXCEPT SELECT a FROM private",
    "SELECT hasColumnInTable('claw', 'private', 'a')",
    "DESCRIBE TABLE private",
    "DESCRIBE TABLE file('{file}')",
    "DESCRIBE TABLE (SELECT * FROM private)",
    "SHOW DATABASES",
    "SHOW TABLES FROM elsewhere",
    "SHOW CREATE TABLE private",
    "SHOW SETTINGS LIKE 'x'",
    "SHOW PROCESSLIST",
    "EXISTS TABLE private",
    "CHECK TABLE private",
    "KILL QUERY WHERE 1",
    # parameters of views
    "SELECT * FROM contexts(trajectory_uid = (SELECT a FROM private))",
    "SELECT * FROM contexts(trajectory_uid = file('{file}'))",
    "SELECT * FROM contexts('x')",
    "SELECT * FROM elsewhere.contexts(trajectory_uid = 'x')",
    # several statements, and what is not read
    "SELECT 1; SELECT * FROM private",
    "EXPLAIN AST SELECT 1; SELECT * FROM private",
    "EXPLAIN AST SELECT 1",
    "EXPLAIN PLAN SELECT 1",
    "EXPLAIN SELECT * FROM private",
    "SELECT * FROM (EXPLAIN SELECT 1)",
    "SELECT 1 /* ; */; DROP TABLE claw.steps",
    "SELECT $$a$$; SELECT 2",
    "INSERT INTO FUNCTION file('{file}.out', 'CSV') SELECT 1",
    "INSERT INTO steps (run_id) VALUES ('x')",
    "INSERT INTO steps (run_id) SELECT 'x'",
    "INSERT INTO steps (run_id) FORMAT TSV\nx",
    "CREATE TABLE claw.t (a UInt8) ENGINE = File(CSV)",
    "CREATE TEMPORARY TABLE t AS SELECT 1",
    "CREATE DICTIONARY d (a UInt8) PRIMARY KEY a SOURCE(FILE(path '{file}' format 'CSV')) LAYOUT(FLAT()) LIFETIME(0)",
    "DROP TABLE claw.steps",
    "ALTER TABLE claw.steps DELETE WHERE 1",
    "OPTIMIZE TABLE claw.steps",
    "TRUNCATE TABLE claw.steps",
    "SYSTEM SHUTDOWN",
    "SET readonly = 0",
    "USE elsewhere",
    "BACKUP TABLE claw.steps TO File('{file}.out')",
    "ATTACH TABLE claw.t",
    "GRANT ALL ON *.* TO analyst",
    "SELECT 1 SETTINGS max_memory_usage = 0",
    "SELECT * FROM (SELECT 1 SETTINGS readonly = 0)",
    "SELECT 1 FORMAT CSV SETTINGS readonly = 0",
    "SELECT 1 FORMAT CapnProto",
    "SELECT * FROM input('a String')",
    "SELECT * FROM values('a String', 'b')",
    # who, where, and for how long
    "SELECT getSetting('max_threads')",
    "SELECT currentUser()",
    "SELECT user()",
    "SELECT hostName()",
    "SELECT FQDN()",
    "SELECT @@max_threads",
    "SELECT getMacro('x')",
    "SELECT tcpPort()",
    "SELECT serverUUID()",
    "SELECT sleep(3)",
    "SELECT sleepEachRow(1) FROM steps",
    "SELECT throwIf(1)",
    "SELECT count() FROM numbers(1000000000000)",
    "SELECT * FROM generateRandom('a String', 1, 1000000) LIMIT 1000000000",
    "SELECT * FROM zeros_mt(1000000000000)",
    "SELECT arrayReduce('sum', [1])",
    "SELECT initializeAggregation('sum', 1)",
    "SELECT addressToLine(1)",
    "SELECT fuzzQuery('SELECT 1')",
    "SELECT formatQuery('SELECT 1')",
    # names that look like something else
    "SELECT 1 AS `a\nTableIdentifier steps`",
    "SELECT * FROM `steps\n      x`",
    "SELECT * FROM `claw.steps\\0`",
]


def test_every_way_out_is_refused_and_tells_nothing(front: Front) -> None:
    assert len(ESCAPES) > 120
    for template in ESCAPES:
        sql = template.replace("{file}", str(front.secret_file)).replace("{port}", str(front.port))
        for run in (MINE, None):
            answer = front.ask(sql, run=run)
            assert answer.status in (400, 403, 404, 500), f"{sql}: {answer.status} {answer.body!r}"
            assert b"TREASURE" not in answer.body.replace(sql.encode(), b""), f"{sql}: {answer.body!r}"
    assert not list(front.secret_file.parent.glob("*.out"))
    assert Pool(front.operator, "claw").scalar("SELECT uniqExact(run_id, step_id) FROM steps") == 10


def test_parameters_are_values_and_never_names(front: Front) -> None:
    assert front.ask("SELECT * FROM {t:Identifier}", t="private").status == 403
    assert front.ask("SELECT * FROM {d:Identifier}.{t:Identifier}", d="claw", t="steps").status == 403
    assert front.ask("SELECT count() FROM contexts(trajectory_uid = {u:String})", u="x' OR 1 = 1 --").body == b"0\n"
    assert front.ask("SELECT {x:String}", x="a'b; SELECT 1").body == b"a\\'b; SELECT 1\n"


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_memory_usage": "0"},
        {"additional_table_filters": "{}"},
        {"output_format_schema": "/tmp/x"},
        {"format_template_row": "/etc/passwd"},
        {"default_format": "Template"},
        {"database": "elsewhere"},
        {"log_comment": "x"},
        {"param_x = 1, readonly": "0"},
        {"param_a'b": "0"},
    ],
)
def test_what_comes_beside_the_statement_is_judged_too(front: Front, parameters: Mapping[str, str]) -> None:
    headers = {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": a_key(MINE)}
    answer = send(front.url, {**parameters, "query": "SELECT 1"}, None, headers)
    assert answer.status == 403, answer.body


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT length(repeat('x', 4000000000))", 131),
        ("SELECT length(arrayWithConstant(4000000000, 1))", 128),
        ("SELECT sum(length(range(2000000000)))", 69),
        ("SELECT a.x FROM (SELECT arrayJoin(range(3000)) AS x) AS a, (SELECT arrayJoin(range(3000)) AS x) AS b", 396),
        ("SELECT groupArray(x) FROM (SELECT arrayJoin(arrayMap(i -> repeat('x', 4000), range(900000))) AS x)", 241),
    ],
)
def test_statements_that_ask_for_too_much_end(front: Front, sql: str, code: int) -> None:
    answer = front.ask(f"{sql} FORMAT JSON")
    assert answer.headers["X-ClickHouse-Exception-Code"] == str(code), answer.body[:300]


def test_an_analyst_sees_the_rows_of_its_run(front: Front) -> None:
    runs = "SELECT groupUniqArray(run_id) FROM {} FORMAT TSV"
    for table in ("steps", "steps FINAL", "step_tokens", "effective_rewards", "contexts(trajectory_uid = 'mine-t')"):
        assert front.ask(runs.format(table)).body == b"['mine']\n", table
    assert front.ask("SELECT count() FROM contexts(trajectory_uid = 'other-t')").body == b"0\n"
    assert front.ask("SELECT 'other' IN (SELECT run_id FROM steps AS s)").body == b"0\n"
    assert front.ask("SELECT count() FROM steps", run=None).body == b"10\n"
    assert front.ask("SELECT count() FROM steps", run="nobody").body == b"0\n"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT sum(toUInt8(metadata)) FROM steps WHERE toUInt8(metadata) > 0",
        "SELECT count() FROM steps WHERE intDiv(1, run_id != 'other') >= 0",
        "SELECT count() FROM (SELECT * FROM steps FINAL) WHERE toUInt8(metadata) = 7",
        "SELECT count() FROM steps AS a JOIN steps AS b ON toUInt8(a.metadata) = toUInt8(b.metadata)",
        "SELECT sum(toUInt8(metadata)) FROM trajectory_steps(trajectory_uid = 'mine-t') WHERE toUInt8(metadata) > 0",
        "SELECT step_id FROM steps ORDER BY toUInt8(metadata) LIMIT 1",
        "SELECT count() FROM steps AS a JOIN steps AS b USING (offset) WHERE toUInt8(a.metadata) + toUInt8(b.metadata) > 0",
        "SELECT count() FROM steps WHERE toUInt8(metadata) IN (SELECT 7)",
        "SELECT count() FROM (SELECT toUInt8(metadata) AS x, run_id FROM steps) WHERE run_id = 'other' AND x > 0",
        "WITH c AS (SELECT toUInt8(metadata) AS x FROM steps) SELECT count() FROM c AS a JOIN c AS b ON a.x = b.x",
        "SELECT toUInt8(metadata) AS x, count() FROM steps GROUP BY x HAVING x > 0",
    ],
)
def test_no_error_tells_of_rows_of_other_runs(front: Front, sql: str) -> None:
    assert front.ask(sql).status == 200
    assert front.ask("SELECT count() FROM steps PREWHERE toUInt8(metadata) > 0").status == 403


def test_ordinary_clients_log_in(front: Front) -> None:
    key = a_key(MINE)
    client = clickhouse_connect.get_client(host=front.host, port=front.port, username="analyst", password=key)
    with client:
        assert client.query("SELECT count() FROM claw.steps").result_rows == [(5,)]
        rows = client.query("SELECT * FROM contexts(trajectory_uid = {u:String})", parameters={"u": "mine-t"})
        assert [list(row["prompt_ids"]) for row in rows.named_results()] == [[1, 2]] * 5
        assert ("steps",) in client.query("SHOW TABLES").result_rows
        assert len(client.query("DESCRIBE TABLE steps").result_rows) > 40
        assert client.query_arrow("SELECT step_id FROM steps").num_rows == 5
        with pytest.raises(DatabaseError, match="ACCESS_DENIED"):
            client.command("DROP TABLE claw.steps")
    basic = {"Authorization": "Basic " + base64.b64encode(f"analyst:{key}".encode()).decode()}
    assert send(front.url, {}, b"SELECT count() FROM steps", basic).body == b"5\n"
    grafana = {"query": "SELECT count() AS value FROM steps FORMAT JSONCompact", "database": "claw"}
    assert json.loads(send(front.url, grafana, None, basic).body)["data"] == [[5]]
    assert send(front.url, {"query": "SELECT 1", "user": "analyst", "password": key}).body == b"1\n"


@pytest.mark.parametrize(
    "login", [{}, {"user": "default"}, {"user": "analyst"}, {"user": "analyst", "password": "x"}, {"user": "root"}]
)
def test_nobody_comes_in_without_a_password(front: Front, login: Mapping[str, str]) -> None:
    answer = send(front.url, {"query": "SELECT 1", **login})
    assert answer.status == 403
    assert b"AUTHENTICATION_FAILED" in answer.body


def test_without_a_secret_the_user_analyst_is_guarded_all_the_same(stack: Stack) -> None:
    refused = send(stack.clickhouse, {"query": "SELECT file('/etc/hostname')", "user": "analyst"})
    assert refused.status == 403
    assert send(stack.clickhouse, {"query": "SELECT 1"}).body == b"1\n"


def test_the_lists_say_what_the_pool_and_the_engine_have(front: Front) -> None:
    pool = Pool(front.operator, "claw")
    assert set(TABLES) == analyst.TABLES
    views = {
        row["name"] for row in pool.rows("SELECT name FROM system.tables WHERE database = 'claw' AND engine = 'View'")
    }
    assert views == analyst.VIEWS | analyst.PARAMETER_VIEWS
    filtered = pool.rows(
        "SELECT table FROM system.columns WHERE database = 'claw' AND name = 'run_id' AND type = 'String'"
    )
    assert {row["table"] for row in filtered} >= analyst.TABLES
    aggregates = {
        row["name"]: bool(row["is_aggregate"]) for row in pool.rows("SELECT name, is_aggregate FROM system.functions")
    }
    unknown = {name for name in FUNCTIONS - {"exists", "grouping", "lambda"} if aggregates.get(name) is not False}
    assert not unknown
    assert all(aggregates[name] for name in AGGREGATES)
    formats = {row["name"] for row in pool.rows("SELECT name FROM system.formats WHERE is_output")}
    assert formats >= analyst.FORMATS


def test_claw_sql_asks_as_an_analyst_of_a_run(front: Front) -> None:
    def sql(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "CLAW_SECRET": SECRET}
        return claw("sql", *arguments, "--clickhouse", front.operator, env=env)

    count = "SELECT count() AS n FROM steps"
    assert sql(count).stdout == "n\n10\n"
    assert sql(count, "--as-analyst").stdout == "n\n10\n"
    assert json.loads(sql(count, "--run", MINE, "--json").stdout)["data"] == [{"n": 5}]
    refused = sql("SELECT file('/etc/hostname')", "--run", MINE)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "The function file is not allowed" in refused.stderr
