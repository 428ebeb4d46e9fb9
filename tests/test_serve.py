"""The server: a scan comes back as the pipeline makes it, and nobody gets more than is theirs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bad_scans import BAD
from batches import write_model, write_scan
from tiny import same_grid_config
from typer.testing import CliRunner
from waiting import until

from scorefusion import Pipeline
from scorefusion.batch.work import Work
from scorefusion.cli import app as program
from scorefusion.errors import BadInput

pytest.importorskip("fastapi")
from starlette.testclient import TestClient  # noqa: E402

from scorefusion.serve.app import make_app  # noqa: E402
from scorefusion.serve.limits import Limits  # noqa: E402
from scorefusion.serve.loopback import is_loopback  # noqa: E402

HOST = "http://127.0.0.1:8765"
GENEROUS = Limits(rate=1e6, burst=10**6)
TOKEN = "a long enough secret"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "scan.nii.gz", 1)


@contextmanager
def serving(
    folder: Path,
    model: Path,
    *,
    choices: dict[str, Any] | None = None,
    token: str | None = None,
    limits: Limits = GENEROUS,
) -> Iterator[TestClient]:
    work = Work(str(model), choices or {}, device="cpu", dtype="float32")
    with TestClient(make_app(folder, work, token=token, limits=limits), base_url=HOST) as client:
        yield client


def send(client: TestClient, *files: Path | tuple[str, bytes], **options: Any) -> Any:
    parts = [("file", (f.name, f.read_bytes()) if isinstance(f, Path) else f) for f in files]
    return client.post("/scans", files=parts, **options)


def ended(client: TestClient, scan: str) -> dict[str, Any]:
    def state() -> dict[str, Any] | None:
        told = client.get(f"/scans/{scan}").json()
        return None if told["state"] in ("waiting", "running") else told

    return until(state)


def running(client: TestClient, scan: str) -> dict[str, Any]:
    """A scan once some of its steps are done."""

    def state() -> dict[str, Any] | None:
        told = client.get(f"/scans/{scan}").json()
        assert told["state"] != "failed", told
        return told if told["progress"] else None

    return until(state)


def test_a_scan_comes_back_as_the_pipeline_makes_it(model: Path, scan: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "served", model, choices={"seed": 3}) as client:
        answer = send(client, scan)
        told = answer.json()
        assert answer.status_code == 201 and answer.headers["location"] == f"/scans/{told['id']}"
        assert told["name"] == "scan.nii.gz" and told["state"] in ("waiting", "running", "done")
        told = ended(client, told["id"])
        assert told["state"] == "done" and told["progress"] == 1 and told["seconds"] > 0, told
        result = client.get(told["result"])
        assert 'filename="scan_scorefusion.nii.gz"' in result.headers["content-disposition"]
        listed = client.get("/scans").json()
        assert [each["id"] for each in listed["scans"]] == [told["id"]] and listed["conditions"] == ["t1"]

        assert client.delete(f"/scans/{told['id']}").status_code == 204
        for path in (f"/scans/{told['id']}", told["result"]):
            assert client.get(path).status_code == 404
        assert client.delete(f"/scans/{told['id']}").status_code == 404
        assert not list((tmp_path / "served").rglob("*.nii*"))
    Pipeline(model, device="cpu", dtype="float32")(scan, seed=3).save(tmp_path / "own.nii.gz")
    assert result.content == (tmp_path / "own.nii.gz").read_bytes()


def test_a_model_of_two_conditions_takes_two_files(scan: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "two", same_grid_config())
    second = write_scan(tmp_path / "second.nii", 2)
    with serving(tmp_path / "served", model) as client:
        told = ended(client, send(client, scan, second).json()["id"])
        assert told["state"] == "done", told
        assert "takes 2" in send(client, scan).json()["error"]
        assert "takes 2" in send(client, scan, second, scan).json()["error"]
        result = client.get(told["result"]).content
    Pipeline(model, device="cpu", dtype="float32")([scan, second]).save(tmp_path / "own.nii.gz")
    assert result == (tmp_path / "own.nii.gz").read_bytes()


@pytest.mark.parametrize("kind", ["text", "empty", "absurd", "pickled", "frames"])
def test_what_is_no_scan_is_refused_at_once(model: Path, tmp_path: Path, kind: str) -> None:
    ending, write, problem = BAD[kind]
    write(tmp_path / f"bad{ending}")
    with serving(tmp_path / "served", model) as client:
        answer = send(client, tmp_path / f"bad{ending}")
        assert answer.status_code == 422 and problem in answer.json()["error"], answer.text
        assert str(tmp_path) not in answer.text and f"bad{ending}" in answer.text
        assert client.get("/scans").json()["scans"] == []
    assert nothing_kept(tmp_path / "served")


@pytest.mark.parametrize("kind", ["bomb", "truncated", "constant"])
def test_what_turns_out_to_be_no_scan_fails(model: Path, scan: Path, tmp_path: Path, kind: str) -> None:
    """A gzip bomb among them; the next scan is translated all the same."""
    ending, write, problem = BAD[kind]
    write(tmp_path / f"bad{ending}")
    with serving(tmp_path / "served", model) as client:
        first, second = send(client, tmp_path / f"bad{ending}").json(), send(client, scan).json()
        told = ended(client, first["id"])
        assert told["state"] == "failed" and problem in told["error"] and told["fix"]
        assert told["error"].startswith(f"bad{ending}: ") and str(tmp_path) not in json.dumps(told)
        assert client.get(f"/scans/{first['id']}/result").status_code == 409
        assert ended(client, second["id"])["state"] == "done"


@pytest.mark.parametrize(
    ("content_type", "body", "problem"),
    [
        ("application/json", b"{}", "an upload is a form"),
        ("multipart/form-data", b"", "an upload is a form"),
        ("multipart/form-data; boundary=x", b"what is this", "the form is damaged"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--",
            "takes 1",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n123',
            "takes 1",
        ),
    ],
)
def test_a_form_that_is_none(
    model: Path, tmp_path: Path, content_type: str, body: bytes, problem: str
) -> None:
    with serving(tmp_path / "served", model) as client:
        answer = client.post("/scans", content=body, headers={"Content-Type": content_type})
        assert answer.status_code == 400 and problem in answer.json()["error"], answer.text
    assert nothing_kept(tmp_path / "served")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../../etc/cron.d/evil.nii.gz", "evil.nii.gz"),
        ("..\\..\\evil.nii", "evil.nii"),
        ("/etc/passwd", "passwd"),
        ("..", ".."),
        ('a";\r\nSet-Cookie: b=c.nii', None),
        ("<script>alert(1)<script>.nii", "<script>alert(1)<script>.nii"),
        ("süß ☃.nii.gz", "süß ☃.nii.gz"),
        ("x" * 5000 + ".nii", "x" * 120),
    ],
)
def test_a_clients_name_is_shown_and_no_path(
    model: Path, scan: Path, tmp_path: Path, name: str, shown: str | None
) -> None:
    folder = tmp_path / "served"
    with serving(folder, model, choices={"steps": 1}) as client:
        answer = send(client, (name, scan.read_bytes()))
        if len(name) > 4000:
            assert answer.status_code == 400  # more than a header may have
            return
        told = ended(client, answer.json()["id"])
        assert told["state"] == "done" and shown in (None, told["name"])
        assert told["name"].isprintable() and "/" not in told["name"]
        result = client.get(told["result"])
        assert result.status_code == 200 and "set-cookie" not in result.headers
        disposition = result.headers["content-disposition"]
        assert disposition.startswith("attachment; filename") and disposition.count('"') in (0, 2)
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.nii*")}
        assert found == {f"inputs/{told['id']}/0.nii.gz", f"outputs/{told['id']}.nii.gz"}
        assert {path.name for path in tmp_path.iterdir()} == {"scan.nii.gz", "served"}


def test_ids_that_the_server_did_not_make(model: Path, tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"secret")
    with serving(tmp_path / "served", model) as client:
        for scan in ("..%2f..%2fscan", "%2e%2e", "0" * 32, "a'; DROP TABLE items; --", "0" * 31 + "%0a"):
            for path in (f"/scans/{scan}", f"/scans/{scan}/result"):
                answer = client.get(path)
                assert answer.status_code == 404 and b"secret" not in answer.content, path
            assert client.delete(f"/scans/{scan}").status_code == 404


def test_a_token_is_asked_for(model: Path, scan: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "served", model, token=TOKEN) as client:
        for given in (None, TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", f"Basic {TOKEN}"):
            headers = {} if given is None else {"Authorization": given}
            for method, path in (("GET", "/scans"), ("DELETE", "/scans/0"), ("GET", "/openapi.json")):
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert send(client, scan, headers=headers).status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/scans", headers={**right, "Host": "scans.example.org"}).status_code == 200
        assert send(client, scan, headers=right).status_code == 201
        assert client.get("/").status_code == 200


def test_other_sites_and_other_names_are_refused(model: Path, scan: Path, tmp_path: Path) -> None:
    """A page in a browser on this machine can neither send a scan nor read one, under whatever name."""
    with serving(tmp_path / "served", model) as client:
        for host in ("127.0.0.1:8765", "localhost:8765", "LOCALHOST", "[::1]:8765", "127.0.0.2"):
            assert client.get("/scans", headers={"Host": host}).status_code == 200, host
        for host in (
            "evil.example",
            "evil.example:8765",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "10.0.0.1",
        ):
            assert client.get("/scans", headers={"Host": host}).status_code == 403, host
        for origin in ("https://evil.example", "http://localhost:9999", "null", "http://127.0.0.1"):
            assert send(client, scan, headers={"Origin": origin}).status_code == 403, origin
        assert send(client, scan, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert client.get("/scans").json()["scans"] == []
        own = {"Origin": HOST, "Sec-Fetch-Site": "same-origin"}
        assert send(client, scan, headers=own).status_code == 201


def test_the_page_and_the_headers(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "served", model) as client:
        page = client.get("/")
        assert "<script>" not in page.text and "<style" not in page.text and "onclick" not in page.text
        for path, kind in (
            ("/", "text/html"),
            ("/page.js", "text/javascript"),
            ("/page.css", "text/css"),
            ("/scans", "application/json"),
            ("/none", "application/json"),
        ):
            answer = client.get(path)
            assert answer.headers["content-type"].startswith(kind)
            assert answer.headers["x-content-type-options"] == "nosniff"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
        script = client.get("/page.js").text
        assert "innerHTML" not in script and "insertAdjacent" not in script and "document.write" not in script
        assert set(client.get("/openapi.json").json()["paths"]["/scans"]) == {"get", "post"}


def test_a_restart_goes_on_with_what_waits(model: Path, scan: Path, tmp_path: Path) -> None:
    """Of three scans one is done, one is under way and one waits when the server ends."""
    folder = tmp_path / "served"
    with serving(folder, model, choices={"steps": 1}) as client:
        done = ended(client, send(client, scan).json()["id"])
    with serving(folder, model, choices={"steps": 1000}) as client:
        under_way, waits = send(client, scan).json()["id"], send(client, scan).json()["id"]
        running(client, under_way)
        with pytest.raises(BadInput, match="is being written to by another run"):
            make_app(folder, Work(str(model), device="cpu", dtype="float32"))
    (folder / "inputs" / ("f" * 32)).mkdir()
    (folder / "outputs" / ("f" * 32 + ".nii.gz")).write_bytes(b"left by a kill")
    (folder / "outputs" / f".01234567.{waits}.nii.gz").write_bytes(b"left by a kill")
    (folder / ".scorefusion" / "uploads" / "part").mkdir()
    with serving(folder, model, choices={"steps": 1}) as client:
        for each in (under_way, waits):
            assert ended(client, each)["state"] == "done"
        names = [(told["id"], told["name"]) for told in client.get("/scans").json()["scans"]]
        assert names == [(each, "scan.nii.gz") for each in (done["id"], under_way, waits)]
        results = {client.get(f"/scans/{each}/result").content for each, _ in names}
        assert len(results) == 1 and gzip.decompress(results.pop())
    assert len(list(folder.rglob("*.nii.gz"))) == 6 and not list(
        (folder / ".scorefusion" / "uploads").iterdir()
    )


def test_a_scan_waits_while_the_model_cannot_be_read(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is nobody's fault fails no scan: it is told, tried again, and forgotten."""
    monkeypatch.setattr("scorefusion.serve.bench.PAUSE", 0.05)
    model = write_model(tmp_path / "tiny")
    with serving(tmp_path / "served", model) as client:
        model.rename(tmp_path / "away")
        told = send(client, scan).json()
        trouble = until(lambda: client.get("/scans").json()["trouble"])
        assert "does not exist" in trouble
        assert client.get(f"/scans/{told['id']}").json()["state"] in ("waiting", "running")
        (tmp_path / "away").rename(model)
        assert ended(client, told["id"])["state"] == "done"
        assert client.get("/scans").json()["trouble"] is None


def test_a_server_that_others_reach_needs_a_token(tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(
            program, ["serve", str(tmp_path / "served"), *arguments], env={"SCOREFUSION_TOKEN": None}
        )
        assert result.exit_code == 2 and not (tmp_path / "served").exists()
        return result.stderr

    assert "others can reach 0.0.0.0" in refused("--host", "0.0.0.0")
    assert "others can reach" in refused("--host", "scans.example.org")
    assert "16 characters" in refused("--host", "0.0.0.0", "--token", "short")
    assert "16 characters" in refused("--token", "short")
    assert "unknown model" in refused("--model", "none")
    loopback = ("127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.10")
    assert all(is_loopback(host) for host in loopback)
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", ""))


def nothing_kept(folder: Path) -> bool:
    return not any(any((folder / each).iterdir()) for each in ("inputs", "outputs", ".scorefusion/uploads"))
