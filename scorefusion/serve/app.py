"""The server's answers. Importing this needs the extra ``serve``."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response

import scorefusion
from scorefusion.batch.item import shown
from scorefusion.batch.queue import Entry
from scorefusion.batch.work import Work
from scorefusion.errors import BadInput, ScoreFusionError
from scorefusion.io.formats import read_header
from scorefusion.serve.bench import Bench
from scorefusion.serve.guard import Guard
from scorefusion.serve.limits import Limits
from scorefusion.serve.shelf import Shelf
from scorefusion.serve.uploads import TooLarge, receive

_PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"),
         "/page.js": ("page.js", "text/javascript")}  # fmt: skip


def make_app(
    folder: Path, work: Work | None = None, *, token: str | None = None, limits: Limits | None = None
) -> FastAPI:
    """An ASGI application that translates what is sent to it; see docs/serve.md.

    Args:
        folder: uploads, results and the queue are kept here.
        work: how scans are translated.
        token: that clients must send as ``Authorization: Bearer TOKEN``; None only where nobody but this
            machine can reach the server.
        limits: what is refused.

    Raises:
        ScoreFusionError: for work that cannot be done, or a folder that cannot be used.
    """
    limits, work = limits or Limits(), work or Work()
    work = replace(work, dtype=work.recipe()["dtype"], pictures=False)
    shelf = Shelf(folder)
    bench = Bench(shelf, work)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        bench.start()
        yield
        bench.close()
        shelf.close()

    app = FastAPI(
        title="scorefusion",
        version=scorefusion.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, token=token, limits=limits)
    app.include_router(_Answers(shelf, bench, work, limits).router())
    return app


class _Answers:
    """The endpoints."""

    def __init__(self, shelf: Shelf, bench: Bench, work: Work, limits: Limits):
        self.shelf, self.bench, self.work, self.limits = shelf, bench, work, limits
        self.conditions, self.max_voxels = work.config().conditions, work.settings().max_voxels
        self.uploading = 0

    def router(self) -> APIRouter:
        """The endpoints as a router."""
        router = APIRouter()
        for path in _PAGE:
            router.add_api_route(path, _page(path), include_in_schema=False)
        for path, answer, method in (
            ("/scans", self.add, "POST"),
            ("/scans", self.list, "GET"),
            ("/scans/{scan}", self.get, "GET"),
            ("/scans/{scan}/result", self.result, "GET"),
            ("/scans/{scan}", self.delete, "DELETE"),
        ):
            router.add_api_route(path, answer, methods=[method], response_model=None)
        return router

    async def add(self, request: Request) -> Response:
        """Take a scan: a form with one ``file`` for each condition of the model, in its order."""
        entries = self.shelf.entries()
        waiting = sum(entry.state == "waiting" for entry in entries) + self.uploading
        if waiting >= self.limits.waiting:
            return _error(503, "too many scans are waiting", headers={"Retry-After": "60"})
        if len(entries) + self.uploading >= self.limits.kept:
            return _error(507, f"{self.limits.kept} scans are kept here already; delete some")
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.limits.upload:
            return _error(413, f"an upload has at most {self.limits.upload:,} bytes")
        self.uploading += 1
        folder = Path(tempfile.mkdtemp(dir=self.shelf.uploads))
        try:
            kind = request.headers.get("content-type", "")
            count, limit = len(self.conditions), self.limits.upload
            upload = receive(request.stream(), kind, folder, limit=limit, count=count)
            files = await asyncio.wait_for(upload, self.limits.upload_time)
            scan = await run_in_threadpool(self._keep, files)
        except asyncio.TimeoutError:  # noqa: UP041 (before Python 3.11 not the built-in one)
            error = f"the upload was not here within {self.limits.upload_time:g} s"
            return _error(408, error, headers={"Connection": "close"})
        except TooLarge as error:
            return _error(413, str(error))
        except BadInput as error:
            name = next((name for path, name in files if shown(path) == shown(error.file)), "the file")
            return _error(422, f"{name}: {error.problem}", error.fix)
        except ScoreFusionError as error:
            return _error(400, str(error))
        finally:
            self.uploading -= 1
            shutil.rmtree(folder, ignore_errors=True)
        return JSONResponse(self.describe(scan), 201, {"Location": f"/scans/{scan}"})

    def _keep(self, files: list[tuple[Path, str]]) -> str:
        for path, _ in files:
            read_header(path, self.max_voxels)
        return self.shelf.add([path for path, _ in files], files[0][1])

    def list(self) -> dict[str, Any]:
        """All scans, oldest first."""
        names = self.shelf.names()
        scans = [self._described(entry, names.get(entry.name, "")) for entry in self.shelf.entries()]
        return {
            "model": Path(self.work.model).name,
            "conditions": self.conditions,
            "scans": scans,
            "trouble": self.bench.trouble,
        }

    def get(self, scan: str) -> Any:
        """A scan's state."""
        found = self.describe(scan)
        return _error(404, "no such scan") if found is None else found

    def result(self, scan: str) -> Response:
        """A scan's translation, once it is done."""
        entry = self.shelf.entry(scan)
        if entry is None:
            return _error(404, "no such scan")
        path = self.shelf.outputs / f"{entry.name}.nii.gz"
        if entry.state != "done" or not path.is_file():
            return _error(409, f"the scan is {entry.state}, there is no result")
        name = re.sub(r"\.nii(\.gz)?$", "", self.shelf.names().get(scan, "scan"), flags=re.I)
        return FileResponse(path, media_type="application/gzip", filename=f"{name}_scorefusion.nii.gz")

    def delete(self, scan: str) -> Response:
        """Remove a scan and its files; what is being translated ends soon."""
        if self.shelf.entry(scan) is None:
            return _error(404, "no such scan")
        self.bench.remove(scan)
        return Response(status_code=204)

    def describe(self, scan: str) -> dict[str, Any] | None:
        """A scan as clients see it; None for one that is not there."""
        entry = self.shelf.entry(scan)
        return None if entry is None else self._described(entry, self.shelf.names().get(scan, ""))

    def _described(self, entry: Entry, name: str) -> dict[str, Any]:
        outcome, done = entry.outcome, entry.state == "done"
        error = outcome.error
        for file in self.shelf.item(entry.name).files if error else ():
            error = error.replace(shown(file), name) if error else None
        return {
            "id": entry.name,
            "name": name,
            "state": entry.state,
            "progress": 1.0 if done else round(self.bench.progress(entry.name), 3),
            "error": error,
            "fix": outcome.fix,
            "seconds": round(sum(outcome.seconds.values()), 3) if done else None,
            "warnings": list(outcome.warnings),
            "result": f"/scans/{entry.name}/result" if done else None,
        }


def _page(path: str) -> Callable[[], Response]:
    """An endpoint that answers with a part of the page."""
    name, kind = _PAGE[path]
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return lambda: Response(text, media_type=kind)


def _error(
    status: int, error: str, fix: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": error, "fix": fix}, status, headers)
