"""The server's limits: on size, number, rate and time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from batches import write_model, write_scan
from waiting import PATIENCE, until

from scorefusion.batch.work import Work

pytest.importorskip("fastapi")
from scorefusion.serve.app import make_app  # noqa: E402
from scorefusion.serve.limits import Limits, Rate  # noqa: E402
from tests.test_serve import ended, nothing_kept, running, send, serving  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "scan.nii.gz", 1)


def test_more_than_the_limits_is_refused(model: Path, scan: Path, tmp_path: Path) -> None:
    limits = Limits(upload=5000, waiting=2, kept=4, rate=1e6, burst=10**6)
    with serving(tmp_path / "served", model, choices={"steps": 1000}, limits=limits) as client:
        large = ("large.nii", bytes(6000))
        assert send(client, large).status_code == 413

        def chunks() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(10):
                yield bytes(1000)
            yield b"\r\n--x--\r\n"

        form = {"Content-Type": "multipart/form-data; boundary=x"}
        assert client.post("/scans", content=chunks(), headers=form).status_code == 413  # no Content-Length
        until(lambda: nothing_kept(tmp_path / "served"))

        first = send(client, scan).json()["id"]
        running(client, first)
        assert [send(client, scan).status_code for _ in range(3)] == [201, 201, 503]
        for told in client.get("/scans").json()["scans"][1:]:
            assert client.delete(f"/scans/{told['id']}").status_code == 204
        assert client.get(f"/scans/{first}").json()["state"] == "running"
        assert client.delete(f"/scans/{first}").status_code == 204
        until(lambda: client.get(f"/scans/{first}").status_code == 404)
        until(lambda: nothing_kept(tmp_path / "served"))
    few = Limits(kept=1, rate=1e6, burst=10**6)
    with serving(tmp_path / "served", model, limits=few) as client:
        ended(client, send(client, scan).json()["id"])
        assert send(client, scan).status_code == 507
    with serving(tmp_path / "voxels", model, choices={"max_voxels": 8 * 7 * 6 * 5 - 1}) as client:
        told = ended(client, send(client, scan).json()["id"])
        assert told["state"] == "failed" and "voxels" in told["error"]


def test_an_upload_that_stands_still_is_given_up(model: Path, tmp_path: Path) -> None:
    """Over a real connection: half a form, and then nothing."""
    uvicorn = pytest.importorskip("uvicorn")
    limits = Limits(waiting=1, upload_time=0.3)
    work = Work(str(model), {}, device="cpu", dtype="float32")
    app = make_app(tmp_path / "served", work, limits=limits)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            for _ in range(2):  # the place of the first is free again
                with socket.create_connection(listening.getsockname(), timeout=PATIENCE) as client:
                    client.sendall(
                        b"POST /scans HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
                        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
                    )
                    answer = client.makefile("rb").read()
                assert b" 408 " in answer.splitlines()[0] and b"not here within 0.3 s" in answer
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
    until(lambda: nothing_kept(tmp_path / "served"))


def test_a_client_that_asks_too_often_has_to_wait(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "served", model, limits=Limits(rate=0.01, burst=3)) as client:
        answers = [client.get("/scans") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 200
    now = 0.0
    rate = Rate(2.0, 3, clock=lambda: now)
    assert [rate.take("a") for _ in range(4)] == [0, 0, 0, 0.5] and rate.take("b") == 0
    now = 0.5
    assert rate.take("a") == 0 and rate.take("a") == 0.5
    now = 100.0
    assert [rate.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    for number in range(20_000):
        rate.take(str(number))
    assert len(rate._buckets) <= 10_000
