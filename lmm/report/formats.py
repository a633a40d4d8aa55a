"""A table as text: Markdown or LaTeX, with what is special to either escaped."""

import re
from collections.abc import Sequence

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "×": r"$\times$",
    **{special: f"\\{special}" for special in "&%$#_{}"},
}


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """A table in Markdown.

    words  how many columns, the first, are words; the others are numbers, and stand to the right
    """
    sides = ["---"] * words + ["---:"] * (len(headings) - words)
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, sides, *rows))


def latex_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """A table in LaTeX; cells are as LaTeX wants them. words as `markdown_table` has it."""
    lines = [
        rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(headings) - words)}}}",
        r"\hline",
        rf"{' & '.join(headings)} \\",
        r"\hline",
        *(rf"{' & '.join(row)} \\" for row in rows),
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escape_markdown(words: str) -> str:
    """Words that Markdown takes for words."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", " ".join(words.split()))


def escape_latex(words: str) -> str:
    """Words that LaTeX takes for words."""
    return "".join(_LATEX.get(character, character) for character in " ".join(words.split()))
