"""Lines and tokens of the text form, and the small readers that the parser is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from autosched.ir.syntax import LONG


class ParseError(ValueError):
    """Text that is no program: the message begins with the line number."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


_TYPES = "|".join(sorted(LONG, key=len, reverse=True))
_TOKEN = re.compile(
    r"\s*(?:"
    r'(?P<string>"(?:[^"\\]|\\.)*")'
    rf"|(?P<number>(?:\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|(?:inf|nan)\b)(?::(?:{_TYPES})\b)?)"
    r"|(?P<value>%[A-Za-z0-9_.]+)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_.]*)"
    r"|(?P<sign>\.\.|::|:=|<=|>=|==|!=|//|[-+*/%<>&|=:,()\[\]$])"
    r")"
)


class Token(NamedTuple):
    kind: str
    text: str


class Line(NamedTuple):
    number: int
    depth: int
    tokens: tuple[Token, ...]


def read_lines(text: str) -> list[Line]:
    out = []
    for number, raw in enumerate(text.splitlines(), 1):
        body = raw.lstrip(" ")
        if body.strip():
            out.append(Line(number, len(raw) - len(body), tokens_of(body, number)))
    return out


def tokens_of(text: str, number: int) -> tuple[Token, ...]:
    out = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ParseError(number, f"cannot read {text[at : at + 20].strip()!r}")
        out.append(Token(match.lastgroup, match.group(match.lastgroup)))
        at = match.end()
    return tuple(out)


class Reader:
    """A place in the lines, and what can be read from there."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.row = 0  # the line being read, and the token in it
        self.at = 0

    @property
    def line(self) -> Line:
        if self.row >= len(self.lines):
            raise ParseError(self.lines[-1].number if self.lines else 1, "the text ends too early")
        return self.lines[self.row]

    def fail(self, message: str) -> ParseError:
        return ParseError(self.line.number, message)

    def peek(self, ahead: int = 0) -> Token:
        tokens = self.line.tokens
        return tokens[self.at + ahead] if self.at + ahead < len(tokens) else Token("end", "")

    def take(self, *texts: str) -> Token:
        """The next token, which must be one of `texts` where any are given."""
        token = self.peek()
        if texts and (token.text not in texts or token.kind == "string"):
            want = " or ".join(map(repr, texts))
            raise self.fail(f"expected {want}, found {token.text or 'the end of the line'!r}")
        self.at += 1
        return token

    def accept(self, text: str) -> bool:
        found = self.peek().text == text and self.peek().kind != "string"
        self.at += found
        return found

    def end(self) -> None:
        if self.peek().kind != "end":
            raise self.fail(f"unexpected {self.peek().text!r}")

    def next_line(self) -> None:
        self.end()
        self.row, self.at = self.row + 1, 0

    def name(self) -> str:
        token = self.take()
        if token.kind == "string":
            return json.loads(token.text)
        if token.kind == "name" or (token.kind == "number" and token.text in ("inf", "nan")):
            return token.text
        raise self.fail(f"expected a name, found {token.text or 'the end of the line'!r}")

    def names(self) -> tuple[str, ...]:
        """[a, b]"""
        self.take("[")
        return tuple(self.listed(self.name, "]"))

    def listed(self, item: Callable[[], Any], close: str) -> list[Any]:
        """Items with commas between, up to and with the closing sign."""
        out: list[Any] = []
        while not self.accept(close):
            if out:
                self.take(",")
            out.append(item())
        return out

    def several(self, item: Callable[[], Any]) -> list[Any]:
        """One or more items with commas between."""
        out = [item()]
        while self.accept(","):
            out.append(item())
        return out
