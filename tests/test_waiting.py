"""The command line lets idle threads sleep unless its user chose; the library changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scorefusion import cli, doctor

ROOT = Path(__file__).parent.parent
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")]),
        **variables,
    }
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=240, check=True
    )


SCRIPT = ["-c", "from scorefusion.cli import main; main()", "doctor"]  # as pip writes it


@pytest.mark.parametrize("command", [["-m", "scorefusion", "doctor"], SCRIPT], ids=["module", "script"])
def test_the_command_line_sets_it_before_the_runtime_is_loaded(command: list[str]) -> None:
    """OMP_DISPLAY_ENV makes an OpenMP runtime that is loaded print what it has read."""
    done = run(*command, OMP_DISPLAY_ENV="true")
    assert "ok       waiting threads" in done.stdout and "OMP_WAIT_POLICY=passive" in done.stdout
    if "OMP_WAIT_POLICY" in done.stderr:  # not of every runtime
        policies = [line for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
        assert all("PASSIVE" in line.upper() for line in policies), policies


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "1000"), ("KMP_BLOCKTIME", "3")]
)
def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for other in NAMES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    cli.wait_without_spinning()
    assert {other: os.environ[other] for other in NAMES if other in os.environ} == {name: value}
    found = {each.subject: each.detail for each in doctor.examine()}
    assert found["waiting threads"] == f"{name}={value}"


def test_nothing_else_changes_the_environment() -> None:
    """Not even importing the command line: an application may hold its verbs."""
    code = f"import os, scorefusion.cli, scorefusion.pipeline; assert not os.environ.keys() & set({NAMES})"
    run("-c", code)


def test_doctor_tells_a_library_user_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    finding = next(each for each in doctor.examine() if each.subject == "waiting threads")
    assert (
        finding.state == "optional" and "OMP_WAIT_POLICY=passive before torch is imported" in finding.remedy
    )


def test_help_loads_no_pytorch() -> None:
    code = """if True:
        import sys
        sys.argv = ["scorefusion", "translate", "--help"]
        from scorefusion.cli import main
        try:
            main()
        except SystemExit as end:
            assert not end.code
        # numpy it does: the help names the solvers that the registry has
        assert not sys.modules.keys() & {"torch", "nibabel", "scipy"}
    """
    assert "scorefusion translate" in run("-c", code).stdout
