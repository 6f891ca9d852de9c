"""Counts words in the prose of Python files and of Markdown pages, and names that the files bind."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

DIRECTIVE = re.compile(r"#!|#\s*(type:|noqa|fmt:|pragma:)")
CODE = re.compile(r"``.*?``|`[^`]*`", re.DOTALL)
TARGET = re.compile(r"\]\([^)]*\)")
WORD = re.compile(r"[a-z][a-z']*")
SHAPE_SUFFIX = re.compile(r"_[A-Z]{1,4}\d*$")
DESCRIBING = ("description", "help")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

Piece = tuple[int, str]
"""A line number, and the text that begins there."""


@dataclass(frozen=True)
class Hit:
    """An occurrence of a counted word.

    Attributes:
        kind: ``names``, ``phrases``, or the word of prose.
        text: the name or the phrase.
    """

    kind: str
    text: str
    line: int


@dataclass
class Counts:
    """Counts over some files."""

    lines: int = 0
    words: int = 0
    comments: int = 0
    comprehensions: int = 0
    conditionals: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Adds the counts of another file."""
        self.lines += other.lines
        self.words += other.words
        self.comments += other.comments
        self.comprehensions += other.comprehensions
        self.conditionals += other.conditionals
        self.kinds += other.kinds


@dataclass(frozen=True)
class SourceText:
    """A file, parsed once.

    Attributes:
        prose: line number and words of each piece of prose.
        lines: number of lines of code.
        nodes: the syntax tree of the code, every node of it.
        comments: the comments of the code.
    """

    prose: Sequence[tuple[int, list[str]]]
    lines: int = 0
    nodes: Sequence[ast.AST] = ()
    comments: Sequence[Piece] = ()

    @classmethod
    def from_python(cls, source: str) -> SourceText:
        """Parses a Python file.

        Raises:
            SyntaxError: it is not Python.
        """
        nodes, remarks = list(ast.walk(ast.parse(source))), list(comments(source))
        prose = [(line, words_of(text)) for line, text in [*docstrings_of(nodes), *remarks]]
        return cls(prose, len(source.splitlines()), nodes, remarks)

    @classmethod
    def from_markdown(cls, page: str) -> SourceText:
        """Splits a page into its lines of prose: no code, no targets of links."""
        return cls([(line, words_of(text)) for line, text in prose_lines(page)])

    def hits(self, names: Collection[str], words: Collection[str], phrases: Collection[str]) -> list[Hit]:
        """Lists the counted names that the file binds, and the counted words and phrases of its prose."""
        hits = [Hit("names", stem, line) for line, name in bound_names(self.nodes) if (stem := stem_of(name)) in names]
        for line, prose in self.prose:
            text = f" {' '.join(prose)} "
            hits += [Hit(word, word, line) for word in words for _ in range(text.count(f" {word} "))]
            hits += [Hit("phrases", phrase, line) for phrase in phrases for _ in range(text.count(f" {phrase} "))]
        return hits

    def count(self, hits: Collection[Hit]) -> Counts:
        """Counts the file, in which ``hits`` are the counted words."""
        return Counts(
            lines=self.lines,
            words=sum(len(words) for _, words in self.prose),
            comments=len(self.comments),
            comprehensions=sum(isinstance(node, COMPREHENSIONS) for node in self.nodes),
            conditionals=sum(isinstance(node, ast.IfExp) for node in self.nodes),
            kinds=Counter(hit.kind for hit in hits),
        )


def prose_lines(page: str) -> Iterator[Piece]:
    """Yields the lines of a Markdown page that are no code, without the targets of their links."""
    fenced = False
    for number, line in enumerate(page.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, TARGET.sub("]", line)


def docstrings_of(nodes: Collection[ast.AST]) -> Iterator[Piece]:
    """Yields every string that stands as a statement, descriptions of fields, and help of options."""
    for node in nodes:
        match node:
            case ast.Expr(value=ast.Constant(value=str(text)), lineno=line):
                yield line, text
            case ast.keyword(arg=str(name), value=ast.Constant(value=str(text)), lineno=line) if name in DESCRIBING:
                yield line, text


def comments(source: str) -> Iterator[Piece]:
    """Yields comments, without those that only a tool reads."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not DIRECTIVE.match(token.string):
            yield token.start[0], token.string


def words_of(text: str) -> list[str]:
    """Splits prose into words in lower case, without code and examples."""
    return WORD.findall(CODE.sub(" ", without_examples(text)).lower())


def without_examples(docstring: str) -> str:
    """Leaves out the indented lines that follow a line ending in ``::``."""
    kept: list[str] = []
    example_indent: int | None = None
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        if example_indent is not None and line.strip() and indent <= example_indent:
            example_indent = None
        if example_indent is None:
            kept.append(line)
            if line.rstrip().endswith("::"):
                example_indent = indent
    return "\n".join(kept)


def bound_names(nodes: Collection[ast.AST]) -> Iterator[Piece]:
    """Yields each name that is bound: variables, parameters, functions, classes, attributes, aliases."""
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield node.lineno, name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def stem_of(name: str) -> str:
    """Returns a name without leading underscores and without the shape at its end: ``_found_BD`` is ``found``."""
    return SHAPE_SUFFIX.sub("", name.strip("_")).lower()
