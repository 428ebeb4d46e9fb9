"""What the repository promises about itself: small files, one name for an operation, links that lead on."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import scorefusion
from scorefusion.cli import app

ROOT = Path(__file__).parent.parent
FOLDERS = ".ci benchmarks configs csrc docs examples kernels scorefusion tests tools".split()
CODE = (".py", ".h", ".cpp", ".cu")
TEXT = (*CODE, ".md", ".toml", ".json", ".txt", ".in", "")
LIMIT = 700
MODEL_LIMIT = 12e6


def files() -> Iterator[Path]:
    """Every file of the project, whether or not git is here."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith("."))
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def texts() -> Iterator[tuple[Path, str]]:
    for path in files():
        if path.suffix in TEXT:
            yield path, path.read_text(encoding="utf-8")


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path, text in texts()
        if path.suffix in CODE and (lines := len(text.splitlines())) > LIMIT
    }
    assert not long, f"more than {LIMIT} lines: {long}"


def test_no_path_of_somebodys_machine() -> None:
    # Assembled, so that this file does not find itself.
    places = re.compile(
        "(?<![a-zA-Z0-9_.~])/(?:" + "|".join(["ho" + "me", "ro" + "ot", "wo" + "rk", "Us" + "ers"]) + ")/"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if places.search(line)
    ]
    assert not found


def test_nothing_runs_text_as_code() -> None:
    """No shell, no eval, no pickle: what comes from a user or a file stays data."""
    refused = {"os.system", "os.popen", "eval", "exec", "yaml.load", "pickle.load", "pickle.loads"}
    refused |= {"subprocess.getoutput", "subprocess.getstatusoutput", "pickle.Unpickler", "marshal.loads"}
    given = {"shell": True, "allow_pickle": True, "weights_only": False}
    found = []
    for path in files():
        if path.suffix != ".py" or path.is_relative_to(ROOT / "tests"):
            continue
        for call in (
            node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
        ):
            name = ast.unparse(call.func)
            keywords = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
            unsafe = name == "torch.load" and "weights_only" not in keywords
            if unsafe or name in refused or any(keywords.get(key) is value for key, value in given.items()):
                found.append(f"{path.relative_to(ROOT)}:{call.lineno}: {name}")
    assert not found


def test_no_file_without_a_subject() -> None:
    assert not [path for path in files() if path.stem in ("utils", "util", "helpers", "misc", "common")]


SHARED = ("__init__", "backends", "device", "packed_weight")
OPS = sorted(path.stem for path in (ROOT / "scorefusion/ops").glob("*.py") if path.stem not in SHARED)


# On a GPU cuDNN, cuBLAS and TensorRT compute these: no Triton kernel.
CPU_ONLY = ("pointwise", "winograd")


@pytest.mark.parametrize("op", OPS)
def test_an_operation_has_one_name_everywhere(op: str) -> None:
    folders = ["scorefusion/ops/reference/{}", "tests/ops/test_{}", "benchmarks/test_{}"]
    folders += [] if op in CPU_ONLY else ["benchmarks/evidence/cases/{}", "kernels/{}"]
    needed = [f"{folder.format(op)}.py" for folder in folders]
    assert not [name for name in [*needed, f"csrc/{op}.cpp"] if not (ROOT / name).is_file()]


def test_documents_and_examples_import_packages() -> None:
    """Not their files, but for two modules that are public themselves (docs/embed.md)."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    modules = {
        module
        for page in pages
        for module in re.findall(r"^\s*(?:from|import) (scorefusion[.\w]*)", page.read_text("utf-8"), re.M)
    }
    files = {module for module in modules if not (ROOT / module.replace(".", "/") / "__init__.py").is_file()}
    assert files == {"scorefusion.embed.monai", "scorefusion.embed.nipype"}


def test_eight_modules_at_most_lie_at_the_top() -> None:
    assert len(list((ROOT / "scorefusion").glob("*.py"))) <= 8


def test_tests_lie_in_folders_as_the_packages() -> None:
    packages = {path.name for path in (ROOT / "scorefusion").iterdir() if (path / "__init__.py").is_file()}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders - {"support", "benchmarks"} <= packages and packages - {"kernels"} <= folders


def test_contributing_names_folders_and_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    folders = re.findall(r"^    (\w+)/", text, re.M)
    files = re.findall(r"`((?:ops|csrc|kernels|benchmarks|tests)/[\w/]+)(?:\.py|\.\*|/)?`", text)
    assert {"csrc", "kernels", "scorefusion", "benchmarks", "tests"} <= set(folders) and len(files) >= 7
    for name in [*folders, *files]:
        places = [
            ROOT / name,
            ROOT / f"{name}.py",
            ROOT / "scorefusion" / name,
            ROOT / "scorefusion" / f"{name}.py",
        ]
        assert any(place.exists() for place in [*places, ROOT / f"{name}.cpp"]), name


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "NOTICE", "docs"])
def test_links_lead_somewhere(name: str) -> None:
    place = ROOT / name
    for page in place.glob("*.md") if place.is_dir() else [place]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 70


def test_the_readmes_python_runs_on_the_public_names() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 1 and len([line for line in blocks[0].splitlines() if line.strip()]) == 5
    compile(blocks[0], "README.md", "exec")
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for names in re.findall(r"^from scorefusion import (.*)$", page.read_text(), re.M):
            assert set(names.split(", ")) <= set(scorefusion.__all__), page.name


def test_every_verb_is_documented_and_shows_an_example() -> None:
    listed = re.findall(r"^\| `([a-z-]+)", (ROOT / "docs/cli.md").read_text(), re.M)
    verbs = [*app.registered_commands, *app.registered_groups]
    assert sorted(listed) == sorted(info.name or "" for info in verbs)
    for verb in listed:
        shown = CliRunner().invoke(app, [verb, "--help"]).output
        assert f"scorefusion {verb}" in shown.partition("Example")[2], verb


def test_versions_agree_and_what_matters_is_pinned_exactly() -> None:
    assert f"## {scorefusion.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    pins = (ROOT / "constraints.txt").read_text()
    for package in ("torch", "triton", "numpy", "ruff", "mypy", "pytest"):
        assert re.search(rf"^{package}==[0-9][^ *]*", pins, re.M), package


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 10_000


def _stem(file: str) -> str:
    return Path(file).name.partition(".")[0]


def test_training_names_only_what_is_fetched_for_training() -> None:
    source = (ROOT / "tools/fetch_data.py").read_text()
    fetched = re.findall(r'Volume\(\s*"([^"]+)",\s*"([a-z ]+)"', source)
    for config in (ROOT / "configs").glob("*.json"):
        given = json.loads(config.read_text()).get("volumes", [])
        files = [file for volume in given for file in volume.get("files", {"": volume.get("file")}).values()]
        # A clip or a project is named as the NIfTI file that is made of it; a region of the CT is held out.
        seen = {name for name, groups in fetched if {"training", "ct"} & {*groups.split()}}
        assert {_stem(file) for file in files} <= {_stem(file) for file in seen}, config.name
    notice = (ROOT / "NOTICE").read_text()
    assert len(fetched) == 13 and all(name in notice for name, _ in fetched)


def test_bundled_models_are_small_and_have_a_card() -> None:
    for folder in (path for path in (ROOT / "scorefusion/assets").glob("*") if path.is_dir()):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        assert sum(sizes) <= MODEL_LIMIT, f"{folder.name} has {sum(sizes):,} bytes"
        assert "not for" in (folder / "README.md").read_text()
