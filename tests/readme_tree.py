"""The README's file tree, made from the first sentence of each module: `python -m tests.readme_tree` writes it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- tree: made by `python -m tests.readme_tree` -->\n```text\n", "```\n<!-- end of tree -->"
FOLDERS = (
    "adapters",
    "adapters/engine",
    "adapters/migrations",
    "adapters/migrations/versions",
    "router",
    "router/commands",
    "router/http",
    "router/keys",
    "router/following",
    "router/admin_api",
    "router/classifier_cli",
    "router/classify",
    "router/classify/encoder",
    "router/backends",
    "router/backends/embedded",
    "router/backends/vllm",
    "router/workers",
    "trainer",
    "trainer/distillation",
    "trainer/fisher",
    "trainer/merging",
    "trainer/methods",
    "trainer/monitoring",
    "trainer/rehearsal",
    "trainer/sequences",
    "examples/quickstart",
    "examples/quickstart/curriculum",
    "bench",
)
WIDTH = 150


def render() -> str:
    """One line per folder and file."""
    lines: list[str] = []
    for folder in FOLDERS:
        lines.append(_line(f"{folder}/", ROOT / folder / "__init__.py"))
        for file in sorted((ROOT / folder).glob("*.py")):
            if file.name != "__init__.py":
                lines.append(_line(f"    {file.name}", file))
    lines.append(
        "tests/".ljust(32) + "flat, by room: test_adapters_*, test_router_*, test_trainer_*, contracts, end to end"
    )
    return "\n".join(lines) + "\n"


def _line(name: str, module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    sentence = " ".join(docstring.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
    return f"{name.ljust(31)} {sentence}"[:WIDTH]


def written(page: str) -> str:
    """`page` with the tree as it is now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{render()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
