"""One SQL statement as it came over HTTP: what kind it is, which format it names, and where its data begins.

Only as much of ClickHouse's grammar as the front needs: literals, comments and brackets are skipped exactly, everything
else stays the engine's matter.  Pure: bytes in, values out.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["read", "insert_data", "write"]

# Statements that answer with rows.
READING = frozenset(
    {b"SELECT", b"WITH", b"FROM", b"SHOW", b"DESCRIBE", b"DESC", b"EXISTS", b"EXPLAIN", b"CHECK", b"KILL", b"VALUES"}
)
# Output formats without a header or a footer: blocks of them may be sent one after the other.
STREAMED_FORMATS = frozenset(
    {"Native", "TabSeparated", "TSV", "CSV", "RowBinary", "JSONEachRow", "JSONLines", "NDJSON", "JSONCompactEachRow"}
)

_TOKEN = re.compile(
    rb"""
      (?P<space>\s+)
    | (?P<comment>--[^\n]*|\#[!\ ][^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)
    | (?P<heredoc>\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    | (?P<word>\w+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


class StatementRefused(Exception):
    """A statement the front does not run, with ClickHouse's number for that error."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message} ({name})")


@dataclass(frozen=True)
class Statement:
    """`sql` without inline data; for insert_data, `data` is what followed the FORMAT clause in the same text.

    `format` is the format the text names, or None.  `infile_at` is the offset in `sql` at which a FROM INFILE clause
    belongs.
    """

    kind: Kind
    sql: bytes
    format: str | None
    data: bytes = b""
    infile_at: int = 0

    @property
    def streamable(self) -> bool:
        """Whether the engine gives its rows as they come: of a SELECT, and of no other statement that reads."""
        return self.kind == "read" and _first(read_tokens(self.sql)).keyword in (b"SELECT", b"WITH", b"FROM")


@dataclass(frozen=True)
class Token:
    """A word, a literal with its quotes, or one sign; `depth` counts the brackets around it."""

    text: bytes
    start: int
    end: int
    depth: int

    @property
    def keyword(self) -> bytes:
        return self.text.upper()


def parse_statement(text: bytes) -> Statement:
    """Read one statement.  Raises StatementRefused for several statements and for access to the host's files."""
    tokens = read_tokens(text)
    first = _first(tokens)
    if first.keyword == b"INSERT":
        return _parse_insert(text, tokens)
    rest = [first, *tokens]
    _refuse_host_files(rest)
    end = _end_of_single_statement(rest, len(text))
    kind: Kind = "read" if first.keyword in READING else "write"
    return Statement(kind, text[:end], _named_format(rest))


def read_tokens(text: bytes) -> Iterator[Token]:
    """The words, literals and signs of a text with the depth of their brackets, without blanks and comments."""
    depth = 0
    for match in _TOKEN.finditer(text):
        if match.lastgroup in ("space", "comment"):
            continue
        token = match.group()
        if token in (b")", b"]", b"}"):
            depth -= 1
        yield Token(token, match.start(), match.end(), depth)
        if token in (b"(", b"[", b"{"):
            depth += 1


def _first(tokens: Iterator[Token]) -> Token:
    first = next((token for token in tokens if token.text != b"("), None)
    if first is None or first.text == b";":
        raise StatementRefused(62, "SYNTAX_ERROR", "Empty query")
    return first


def _parse_insert(text: bytes, tokens: Iterator[Token]) -> Statement:
    """INSERT [INTO] [TABLE] [FUNCTION] name… [(columns)] [SETTINGS …] then data in a FORMAT, VALUES, or a SELECT."""
    named = False  # the table's name was read, so words are keywords from here on
    settings_at: int | None = None
    for token in tokens:
        if token.depth > 0:
            continue
        if not named:
            named = token.keyword not in (b"INTO", b"TABLE", b"FUNCTION")
        elif token.keyword in (b"VALUES", b"SELECT", b"WITH"):
            rest = [token, *tokens] if token.keyword != b"VALUES" else []
            _refuse_host_files(rest)
            return Statement("write", text, None)
        elif token.keyword == b"INFILE":
            _refuse_host_files([Token(b"FROM", 0, 0, 0), token])
        elif token.keyword == b"SETTINGS":
            settings_at = token.start
        elif token.keyword == b"FORMAT":
            name = next(tokens, None)
            if name is None:
                raise StatementRefused(62, "SYNTAX_ERROR", "Syntax error: FORMAT without a name")
            at = token.start if settings_at is None else settings_at
            return Statement("insert_data", text[: name.end], name.text.decode(), _inline_data(text, name.end), at)
    sql = text.rstrip().rstrip(b";")
    return Statement("insert_data", sql, None, b"", len(sql) if settings_at is None else settings_at)


def _inline_data(text: bytes, after_format: int) -> bytes:
    """Data begins after the first newline that follows the format's name, or else after the blanks."""
    match = re.compile(rb"[ \t\f]*;?[ \t\f]*\r?\n?").match(text, after_format)
    return text[match.end() :] if match else text[after_format:]


def _refuse_host_files(tokens: list[Token]) -> None:
    for before, token in itertools.pairwise(tokens):
        pair = (before.keyword, token.keyword)
        if pair in ((b"INTO", b"OUTFILE"), (b"FROM", b"INFILE")):
            clause = b" ".join(pair).decode()
            raise StatementRefused(
                358, "INTO_OUTFILE_NOT_ALLOWED", f"{clause} is not allowed over HTTP: send or read the data here"
            )


def _end_of_single_statement(tokens: list[Token], length: int) -> int:
    for index, token in enumerate(tokens):
        if token.text == b";" and token.depth == 0:
            if any(later.text != b";" for later in tokens[index + 1 :]):
                raise StatementRefused(62, "SYNTAX_ERROR", "Syntax error: Multi-statements are not allowed")
            return token.start
    return length


def _named_format(tokens: list[Token]) -> str | None:
    """The name after the last FORMAT at the end of the statement (SETTINGS may follow)."""
    top = [token for token in tokens if token.depth == 0 and token.text != b";"]
    for index in range(len(top) - 2, 0, -1):
        if top[index].keyword == b"FORMAT":
            follows = top[index + 2].keyword if index + 2 < len(top) else b"SETTINGS"
            return top[index + 1].text.decode() if follows == b"SETTINGS" else None
    return None
