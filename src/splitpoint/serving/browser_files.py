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
CDN = "https://cdn.jsdelivr.net"
CDN_FOLDER = f"{CDN}/npm/{PACKAGE}@{VERSION}/dist/"
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
        tarball: the npm package, fetched elsewhere; if left out npm fetches it, and where there is no npm the two files
            come from the CDN that pages use.

    Returns:
        The folder.

    Raises:
        ValueError: if the files cannot be had, or are not those whose checksums are written here.
    """
    if tarball is not None:
        a_path("tarball", tarball)
        source, contents = f"tarball={Path(tarball).name!r}", _unpacked(Path(tarball))
    elif npm := shutil.which("npm"):
        with TemporaryDirectory() as scratch:
            source, contents = "what npm fetched", _unpacked(_fetched(npm, Path(scratch)))
    else:
        source, contents = "the CDN", _downloaded()
    folder = runtime_folder()
    for name, content in contents.items():
        if not _integrity(content, RUNTIME[name]):
            raise ValueError(f"{source} holds another {name} than the one that was tested")
    for name, content in contents.items():
        write_atomically(folder / f"{name}.gz", gzip.compress(content, 9, mtime=0))
        write_atomically(folder / name, content)
    return folder


def _fetched(npm: str, folder: Path) -> Path:
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise ValueError(f"{PACKAGE}@{VERSION} could not be fetched by npm (exit code {done.returncode})")
    return folder / f"{PACKAGE}-{VERSION}.tgz"


def _unpacked(file: Path) -> dict[str, bytes]:
    """The runtime's files in the npm package."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"tarball={file.name!r} cannot be read: {error.strerror}") from None
    if not _integrity(content, INTEGRITY):
        raise ValueError(f"tarball={file.name!r} is not {PACKAGE}@{VERSION}: its checksum differs")
    with tarfile.open(file) as package:
        members = {name: package.extractfile(f"package/dist/{name}") for name in RUNTIME}
        return {name: b"" if member is None else member.read() for name, member in members.items()}


def _downloaded() -> dict[str, bytes]:
    """The runtime's files from the CDN."""
    import httpx

    try:
        return {name: httpx.get(CDN_FOLDER + name, timeout=120.0).raise_for_status().content for name in RUNTIME}
    except httpx.HTTPError as error:
        raise ValueError(f"{PACKAGE}@{VERSION} could not be fetched: {type(error).__name__}") from None


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
    base = "/browser/" if here else CDN_FOLDER
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
