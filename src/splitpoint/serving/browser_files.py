"""What a browser downloads to draw by itself: a runtime from npm, and the models that ``browser_export`` writes.

``splitpoint browser-files`` fills the cache once. Without the runtime in it, pages with internet take the same two
files from a CDN; either way they are used only if their checksum is the one written here.
"""

import argparse
import base64
import gzip
import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from splitpoint.checks import a_path, one_of
from splitpoint.files import results_path, write_atomically
from splitpoint.serving.browser_export import DECODER, LIST, TEXT, exported, read_list

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
RUNTIME = {
    SCRIPT: "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    WASM: "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
REGISTRY = "https://registry.npmjs.org"
CDN = "https://cdn.jsdelivr.net"
_KINDS = {".mjs": "text/javascript", ".wasm": "application/wasm", ".onnx": "application/octet-stream"}


@dataclass(frozen=True)
class BrowserFile:
    """A file as it is served.

    Args:
        path: where it lies.
        kind: media type.
        packed: the same with gzip, for those who can unpack it; None if that saves little.
    """

    path: Path
    kind: str
    packed: Path | None = None


def runtime_folder() -> Path:
    """Where the runtime is kept, under ``results/``."""
    return results_path("browser", f"{PACKAGE}-{VERSION}")


def has_runtime() -> bool:
    """Whether the cache holds both files, unchanged."""
    files = [runtime_folder() / name for name in RUNTIME]
    return all(file.is_file() and _integrity(file.read_bytes(), RUNTIME[file.name]) for file in files)


def fetch_runtime(tarball: Path | None = None) -> Path:
    """Put the runtime's two files into the cache.

    Args:
        tarball: the npm package, fetched elsewhere; if left out npm fetches it, or without npm the public registry.

    Returns:
        The folder.

    Raises:
        ValueError: if the package cannot be had, or is not the one whose checksum is written here.
    """
    if tarball is not None:
        a_path("tarball", tarball)
    folder = runtime_folder()
    with TemporaryDirectory() as scratch:
        file = _fetched(Path(scratch)) if tarball is None else Path(tarball)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ValueError(f"tarball={file.name!r} cannot be read: {error.strerror}") from None
        if not _integrity(content, INTEGRITY):
            raise ValueError(f"tarball={file.name!r} is not {PACKAGE}@{VERSION}: its checksum differs")
        with tarfile.open(file) as package:
            for name, checksum in RUNTIME.items():
                member = package.extractfile(f"package/dist/{name}")
                content = b"" if member is None else member.read()
                if not _integrity(content, checksum):
                    raise ValueError(f"tarball={file.name!r} holds another {name} than the one that was tested")
                write_atomically(folder / f"{name}.gz", gzip.compress(content, 9, mtime=0))
                write_atomically(folder / name, content)
    return folder


def _fetched(folder: Path) -> Path:
    name = f"{PACKAGE}-{VERSION}.tgz"
    npm = shutil.which("npm")
    if npm is not None:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise ValueError(f"{PACKAGE}@{VERSION} could not be fetched by npm (exit code {done.returncode})")
        return folder / name
    import httpx

    try:
        answer = httpx.get(f"{REGISTRY}/{PACKAGE}/-/{name}", timeout=120.0).raise_for_status()
    except httpx.HTTPError as error:
        raise ValueError(f"{PACKAGE}@{VERSION} could not be fetched: {type(error).__name__}") from None
    (folder / name).write_bytes(answer.content)
    return folder / name


def _integrity(content: bytes, expected: str) -> bool:
    """Whether the content is what a browser's ``integrity`` names."""
    kind, _, digest = expected.partition("-")
    return base64.b64encode(hashlib.new(kind, content).digest()).decode() == digest


def served_files(models: Path) -> dict[str, BrowserFile]:
    """Every file that an edge serves to browsers, by the last part of its address.

    Args:
        models: a folder of ``exported``.

    Raises:
        ValueError: if it is none.
    """
    found = {name: BrowserFile(Path(models) / name, _KINDS[".onnx"]) for name in read_list(models)}
    if has_runtime():
        for name in RUNTIME:
            path = runtime_folder() / name
            packed = path.with_name(name + ".gz")
            found[name] = BrowserFile(path, _KINDS[path.suffix], packed if packed.is_file() else None)
    return found


def offer(models: Path, styles: Sequence[str]) -> dict:
    """What a page needs to know to load everything: addresses, sizes, checksums.

    Args:
        models: a folder of ``exported``.
        styles: names of users, each with a U-Net in it.

    Raises:
        ValueError: for a style that has none, or a folder without models.
    """
    listed = read_list(models)
    for style in styles:
        one_of("styles", f"unet-{style}.onnx", listed)
    here = has_runtime()
    base = "/browser/" if here else f"{CDN}/npm/{PACKAGE}@{VERSION}/dist/"
    address = lambda name: dict(url=f"/browser/{name}?v={listed[name]['sha256'][:16]}", bytes=listed[name]["bytes"])
    return dict(
        runtime=dict(
            name=f"{PACKAGE} {VERSION}",
            origin="" if here else CDN,
            script=dict(url=base + SCRIPT, integrity=RUNTIME[SCRIPT]),
            wasm=dict(url=base + WASM, integrity=RUNTIME[WASM]),
        ),
        unets={style: address(f"unet-{style}.onnx") for style in styles},
        text_encoder=address(TEXT),
        decoder=address(DECODER),
    )


def main() -> None:
    """``splitpoint browser-files``."""
    parser = argparse.ArgumentParser(
        prog="splitpoint browser-files",
        description="Fetch the runtime that browsers compute with, and export the miniature for it; once.",
        epilog="example: splitpoint browser-files",
    )
    parser.add_argument("--tarball", type=Path, help=f"{PACKAGE}-{VERSION}.tgz, if it was fetched elsewhere")
    options = parser.parse_args()
    if options.tarball is not None or not has_runtime():
        fetch_runtime(options.tarball)
    from splitpoint.diffusion.hybrid import load_mini_hybrid

    models = exported(load_mini_hybrid())
    print(f"runtime  {PACKAGE} {VERSION}, in {_shown(runtime_folder())}")
    print(f"models   in {_shown(models)}, listed in {LIST}")
    for name, facts in read_list(models).items():
        print(f"  {name:22s} {facts['bytes'] / 1e6:5.1f} MB   {facts['difference']:.0e} from PyTorch at most")


def _shown(folder: Path) -> str:
    return "/".join(folder.parts[-3:])
