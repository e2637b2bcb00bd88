"""The settings of every training method as tables in docs/methods.md; `python -m tests.method_settings` writes them."""

from __future__ import annotations

from pathlib import Path

from pydantic_core import PydanticUndefined

from trainer.methods.settings import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- settings: made by `python -m tests.method_settings` -->\n", "<!-- end of settings -->"


def render() -> str:
    """One short section per method: what it is in a sentence, then its keys."""
    return "\n".join(_section(name) for name in METHODS)


def _section(name: str) -> str:
    kind = METHODS[name]
    lines = [f"### `{name}`", "", " ".join((kind.__doc__ or "").split()), "", "| key | default | |", "|---|---|---|"]
    for key, field in kind.model_fields.items():
        if key != "method":
            default = "" if field.default in (None, PydanticUndefined) else f"`{field.default}`"
            lines.append(f"| `{key}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join([*lines, ""])


def written() -> str:
    """The page with its tables as they should be now."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{render()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
