"""`python -m tests.words`: checks the words of code and pages, counts them, and lists each occurrence in a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from tests.words.counting import Counts
from tests.words.rules import FOLDER_DEPTHS, LIST, PAGES_AT_THE_TOP, Rules, count_folders, sources


def main() -> int:
    """Runs the command; the exit status is 1 where a folder breaks the rules."""
    parser = argparse.ArgumentParser(prog="python -m tests.words", description=__doc__)
    parser.add_argument("folder", nargs="?", help="list the occurrences in files whose path begins so")
    parser.add_argument("--figures", action="store_true", help="print how often, for each folder at the top")
    parser.add_argument("--write", action="store_true", help="write today's counts as ceilings")
    options = parser.parse_args()
    text = LIST.read_text(encoding="utf-8")
    rules = Rules.read(text)
    if options.folder:
        list_hits(rules, options.folder)
        return 0
    counted = count_folders(rules)
    if options.figures:
        print_figures(rules, counted)
        return 0
    if options.write:
        head, _, _ = text.partition("[ceilings]\n")
        LIST.write_text(f"{head}[ceilings]\n{rules.ceilings_of(counted)}", encoding="utf-8")
        return 0
    problems = [problem for folder, counts in counted.items() for problem in rules.problems(folder, counts)]
    problems += [f"{folder}: has a ceiling and no files" for folder in rules.ceilings if folder not in counted]
    print("\n".join(problems) if problems else f"words: {len(counted)} folders, all within their limits")
    return 1 if problems else 0


def list_hits(rules: Rules, prefix: str) -> None:
    """Prints the line of each hit in files below a folder."""
    for path, text in sources():
        if path.startswith(prefix):
            for hit in sorted(rules.hits(path, text), key=lambda hit: hit.line):
                subject = f"name {hit.text}" if hit.kind == "names" else hit.text
                print(f"{path}:{hit.line}: {subject}")


def print_figures(rules: Rules, counted: Mapping[str, Counts]) -> None:
    """Prints a table of frequencies: words in 10,000 of prose, names in all, the others in 1,000 lines."""
    kinds = list(rules.per_10_000)
    columns = [*kinds, "names", "comprehensions", "if-else", "comments"]
    print(" " * 12 + "".join(f"{column:>16}" for column in columns))
    for top in [*FOLDER_DEPTHS, PAGES_AT_THE_TOP]:
        total = Counts()
        for folder, counts in counted.items():
            if folder.split("/")[0] == top:
                total.add(counts)
        figures = [f"{total.kinds[kind] / max(total.words, 1) * 10_000:.0f}" for kind in kinds]
        figures.append(str(total.kinds["names"]))
        for number in (total.comprehensions, total.conditionals, total.comments):
            figures.append(f"{number / max(total.lines, 1) * 1_000:.1f}")
        print(f"{top:12}" + "".join(f"{figure:>16}" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
