"""Per-step denoising latency against batch size on the machine this runs on: ``splitpoint profile``.

Needs torch and diffusers only. A step is ``StepBatch``'s own: the network (with guidance: on a doubled batch, and the
two halves combined), the sampler's update and the look whether all numbers are finite. The networks are ``networks``'.
"""

import argparse
import csv
import gc
import os
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from splitpoint.checks import a_sequence, instance_of, one_of, whole_number
from splitpoint.diffusion.batch import Request, StepBatch
from splitpoint.diffusion.networks import Architecture, architectures, bare_family, build_model, cast, model_flop
from splitpoint.diffusion.sampler import MAX_STEPS
from splitpoint.files import device_name, meta_path, project_root, read_meta, write_meta, write_rows
from splitpoint.progress import progress_bar

MODES = ("eager", "channels_last", "compile", "cuda_graphs")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCHES = (1, 2, 4, 6, 8, 12, 16, 18, 24, 32)
FEW_BATCHES = (1, 2, 4, 8, 16)  # where a step is long
COMPILED_BATCHES = (1, 4, 16)  # each is compiled on its own, for half a minute or more
KEY = ("architecture", "dtype", "mode", "guidance")
COLUMNS = (
    "device",
    "device_type",
    "architecture",
    "dtype",
    "mode",
    "guidance",
    "batch_size",
    "repeat",
    "status",
    "step_s",
    "model_flop",
    "peak_memory_bytes",
    "threads",
    "torch_version",
)
RATE = "matrix_rate_flop_per_s"  # column of files: of a large matrix product in the same number type


class DenoisingStep:
    """One step of a ``StepBatch`` in a mode: ``prepare(batch)`` gives a call without arguments that takes it.

    What is profiled is what is served: the same batch, the same call of the network, the same update. A captured graph
    replays one and the same step; the others go on from step to step, and begin anew after ``MAX_STEPS``.

    Args:
        model: the network, on its device.
        architecture: its Architecture.
        mode: one of ``MODES``; ``compile`` and ``cuda_graphs`` imply channels-last for convolutional networks.
        guidance: classifier-free guidance, which doubles the network's batch.
    """

    def __init__(self, model, architecture: Architecture, mode: str = "eager", guidance: bool = False):
        self.mode, self.guidance_scale = mode, 7.5 if guidance else 1.0
        model = model.to(memory_format=torch.channels_last) if mode != "eager" else model
        self.family = bare_family(architecture, model)
        if mode == "compile":
            self.family.denoise = torch.compile(self.family.denoise, dynamic=False)

    def prepare(self, batch: int) -> Callable[[], None]:
        rows = _WholeBatch(self.family)
        asked = [Request("noise", seed, MAX_STEPS, 0, self.guidance_scale) for seed in range(batch)]

        def run() -> None:
            if not len(rows):
                rows.admit([rows.prepare(request) for request in asked])
            for row in rows.step().left:
                if row.error is not None:
                    raise row.error

        if self.mode != "cuda_graphs":
            return run
        run()
        graph = self._captured(rows.compute)

        def replay(inputs=rows) -> None:  # a graph does not keep alive what it reads
            graph.replay()

        return replay

    def _captured(self, run) -> "torch.cuda.CUDAGraph":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.reset_peak_memory_stats()  # a replay allocates nothing: the peak is the capture's
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=getattr(self, "pool", None)):
            run()
        self.pool = graph.pool()
        return graph


class _WholeBatch(StepBatch):
    """A batch whose forward pass succeeds for all rows or fails: half a batch is not what is measured."""

    def _output(self, slots, lines, inputs, timesteps):
        return lines.output(self.family, inputs, timesteps)


def measure(
    prepare: Callable[[int], Callable[[], None]],
    batch_sizes: Sequence[int],
    repeats: int = 20,
    warmups: int = 3,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
    limit_s: float | None = None,
) -> list[dict]:
    """Time steps, batch sizes interleaved in a new random order each round so that a drifting clock biases none.

    Args:
        prepare: batch size in, call without arguments out.
        batch_sizes: ascending; a size that does not fit in memory is reported as such and ends the curve.
        repeats: timed steps of each size.
        warmups: untimed steps of each size before.
        device: where the steps run.
        seed: of the order.
        limit_s: seconds that the curve may take, preparations included; the sizes with which it would take longer
            are left out.

    Returns:
        Rows with ``batch_size, repeat, status, step_s, peak_memory_bytes``.
    """
    device, runs, rows, peak = torch.device(device), {}, [], {}
    began, planned_s, prepared_s = time.perf_counter(), 0.0, 0.0
    for batch in batch_sizes:
        start = time.perf_counter()
        if limit_s is not None and start - began + planned_s + prepared_s > limit_s:
            break  # preparing this size as long as the one before would already be too long
        try:
            run, peak[batch] = _prepared(prepare, batch, warmups, device)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            rows.append(dict(batch_size=batch, repeat=0, status="out_of_memory", step_s="", peak_memory_bytes=""))
            if device.type == "cuda":
                torch.cuda.empty_cache()
            break
        if limit_s is not None:
            planned_s += repeats * time_once(run, device)
            prepared_s = time.perf_counter() - start
            if time.perf_counter() - began + planned_s > limit_s:
                break
        runs[batch] = run
    order = random.Random(seed)
    with progress_bar("repeats", repeats, None if progress else False) as bar:
        for repeat in range(repeats):
            for batch in order.sample(sorted(runs), len(runs)):
                rows.append(
                    dict(
                        batch_size=batch,
                        repeat=repeat,
                        status="ok",
                        step_s=time_once(runs[batch], device),
                        peak_memory_bytes=peak[batch],
                    )
                )
            bar.update()
    return rows


def _prepared(prepare: Callable[[int], Callable[[], None]], batch: int, warmups: int, device: torch.device):
    """A warmed-up step, and the most memory it takes in bytes (CUDA only).

    The first step is left out of that where there are others: it tries many kernels, each with its own workspace.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    run = prepare(batch)
    peak = torch.cuda.max_memory_allocated() if on_gpu else ""
    for number in range(warmups):
        run()
        if on_gpu and number == 0 and warmups > 1:
            torch.cuda.reset_peak_memory_stats()
    synchronize(device)
    return run, max(peak, torch.cuda.max_memory_allocated()) if on_gpu else ""


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, by torch's own error, by what CPU and MPS say, or behind a capture broken off by it."""
    while error is not None:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "allocate memory" in text:
            return True
        error = error.__context__
    return False


def time_once(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call: device events on CUDA, the wall clock between two synchronisations elsewhere."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def best_device() -> str:
    """``cuda``, else ``mps``, else ``cpu``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def profile_step_latency(
    architecture: str = "mini",
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    dtype: str = "fp32",
    mode: str = "eager",
    guidance: bool = False,
    repeats: int = 20,
    warmups: int = 3,
    device: str | None = None,
    model: torch.nn.Module | None = None,
    seed: int = 0,
    progress: bool = False,
):
    """Measure one denoising step against batch size on this machine.

    Args:
        architecture: one of ``architectures()``.
        batch_sizes: whole numbers from 1 up.
        dtype: ``fp32``, ``bf16`` or ``fp16``.
        mode: ``eager``, ``channels_last``, ``compile`` or (CUDA only) ``cuda_graphs``.
        guidance: classifier-free guidance.
        repeats, warmups: timed and untimed steps of each size.
        device: ``cuda``, ``mps`` or ``cpu``; the best there is if left out.
        model: a network of that architecture to use instead of random weights.
        seed: of weights and order.

    Returns:
        pandas DataFrame, one row a repeat, columns ``COLUMNS``; ``step_s`` in seconds, ``model_flop`` per step.

    Raises:
        ValueError: for an unknown name or a number outside its range.
    """
    import pandas as pd

    device = best_device() if device is None else device
    rows = _profile(
        Setting(architecture, dtype, mode, guidance, tuple(a_sequence("batch_sizes", batch_sizes)), repeats, warmups),
        device,
        model,
        seed,
        progress,
    )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.assign(
        step_s=pd.to_numeric(table["step_s"]), peak_memory_bytes=pd.to_numeric(table["peak_memory_bytes"])
    )


@dataclass(frozen=True)
class Setting:
    """One curve to measure."""

    architecture: str
    dtype: str
    mode: str
    guidance: bool
    batch_sizes: tuple[int, ...]
    repeats: int = 20
    warmups: int = 3
    limit_s: float | None = None  # for the whole curve; sizes that would take longer are left out

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.architecture, self.dtype, self.mode, str(self.guidance)


def _check(setting: Setting, device: str) -> None:
    for name, value, choices in (
        ("architecture", setting.architecture, architectures()),
        ("dtype", setting.dtype, DTYPES),
        ("mode", setting.mode, MODES),
    ):
        one_of(name, value, choices)
    one_of("device", device, ("cuda", "mps", "cpu"))
    if setting.mode == "cuda_graphs" and device != "cuda":
        raise ValueError(f"mode='cuda_graphs' needs device='cuda', not {device!r}")
    instance_of("guidance", setting.guidance, bool)
    for size in a_sequence("batch_sizes", setting.batch_sizes):
        whole_number("batch_sizes", size, 1)
    whole_number("repeats", setting.repeats, 1)
    whole_number("warmups", setting.warmups, 0)


def _profile(setting: Setting, device: str, model=None, seed: int = 0, progress: bool = False) -> list[dict]:
    _check(setting, device)
    architecture = architectures()[setting.architecture]
    if model is None:
        model = build_model(architecture, DTYPES[setting.dtype], device, seed)
    else:
        model = cast(model, DTYPES[setting.dtype]).to(device)
    step = DenoisingStep(model, architecture, setting.mode, setting.guidance)
    flop = model_flop(architecture) * (2 if setting.guidance else 1)
    torch.compiler.reset()
    with (
        torch.no_grad(),
        _as_named(),
        # by default torch gives up after eight shapes, and runs further ones as if not compiled
        torch._dynamo.config.patch(recompile_limit=8 + len(setting.batch_sizes), fail_on_recompile_limit_hit=True),
    ):
        rows = measure(
            step.prepare,
            sorted(setting.batch_sizes),
            setting.repeats,
            setting.warmups,
            device,
            seed,
            progress,
            setting.limit_s,
        )
    common = dict(
        device=machine_name(device),
        device_type=device,
        architecture=setting.architecture,
        dtype=setting.dtype,
        mode=setting.mode,
        guidance=setting.guidance,
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
    )
    return [common | row | {"model_flop": flop * row["batch_size"]} for row in rows]


@contextmanager
def _as_named() -> Iterator[None]:
    """fp32 means fp32 (cuDNN rounds to fewer bits by default), and convolutions run with the kernel that is fastest."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cudnn.benchmark = False, True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before


def machine_name(device: str) -> str:
    """What the steps run on, in words."""
    return torch.cuda.get_device_name() if device == "cuda" else device_name()


def measure_matrix_rate(dtype: str, device: str, size: int | None = None) -> float:
    """Operations a second of a large square matrix product, median of ten after three warm-ups."""
    size = size or (8192 if device == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    rows = measure(lambda _: lambda: a @ b, [1], repeats=10, device=device)
    return 2 * size**3 / statistics.median(row["step_s"] for row in rows)


def default_settings(device: str) -> list[Setting]:
    """What the script measures, most wanted first."""
    usual_s = 60.0 if device == "cuda" else 180.0

    def curves(architecture, dtype, modes, batch_sizes, guidance=True, warmups=3, limit_s=usual_s):
        return [Setting(architecture, dtype, mode, guidance, batch_sizes, 20, warmups, limit_s) for mode in modes]

    if device == "cuda":
        plan = [
            *curves("sd15", "bf16", ("cuda_graphs", "channels_last"), BATCHES, limit_s=120.0),
            *curves("mini", "bf16", ("cuda_graphs", "eager"), BATCHES),
            *curves("mini", "fp32", ("channels_last", "eager"), BATCHES),
            *curves("sd15", "bf16", ("compile",), COMPILED_BATCHES, limit_s=150.0),
            *curves("pixart", "bf16", ("cuda_graphs",), FEW_BATCHES),
            *curves("sdxl", "bf16", ("cuda_graphs",), FEW_BATCHES, limit_s=90.0),
            *curves("sd15", "fp32", ("cuda_graphs",), FEW_BATCHES, limit_s=90.0),
            # what one run has no time for, a second one measures
            *curves("sd15", "bf16", ("eager",), BATCHES, limit_s=120.0),
            *curves("sd15", "bf16", ("cuda_graphs",), BATCHES, guidance=False, limit_s=90.0),
            *curves("pixart", "bf16", ("eager",), FEW_BATCHES),
            *curves("sdxl", "bf16", ("eager",), FEW_BATCHES, limit_s=90.0),
            *curves("sd15", "fp32", ("eager",), FEW_BATCHES, limit_s=90.0),
            *curves("mini", "bf16", ("compile",), COMPILED_BATCHES, limit_s=100.0),
            *curves("pixart", "bf16", ("compile",), COMPILED_BATCHES, limit_s=150.0),
            *curves("sd15", "fp32", ("compile",), COMPILED_BATCHES, limit_s=150.0),
            *curves("sdxl", "bf16", ("compile",), COMPILED_BATCHES, limit_s=300.0),
        ]
    else:
        plan = [
            *curves("mini", "fp32", ("channels_last",), BATCHES),
            *curves("mini", "bf16", ("channels_last",), BATCHES),
            *curves("mini", "fp32", ("eager",), BATCHES),
            *curves("mini", "fp32", ("channels_last",), BATCHES, guidance=False),
            *curves("mini", "fp32", ("compile",), FEW_BATCHES),
            *curves("sd15", "fp32", ("channels_last",), (1, 2, 3), guidance=False, warmups=1),
            *curves("pixart", "fp32", ("eager",), (1, 2, 3), guidance=False, warmups=1),
            *curves("sd15", "bf16", ("channels_last",), (1, 2, 3), guidance=False, warmups=1),
            *curves("sdxl", "fp32", ("channels_last",), (1, 2, 3), guidance=False, warmups=1),
        ]
    have = architectures()
    return [s for s in plan if s.architecture in have]


def run_profile(
    out: Path,
    device: str | None = None,
    budget_s: float = 480.0,
    settings: Sequence[Setting] | None = None,
    seed: int = 0,
    options: str = "",
) -> None:
    """Measure all settings that fit the budget into one file; finished curves are kept and not measured again.

    Args:
        out: CSV file with ``COLUMNS`` and the machine's matrix rate beside each curve; next to it comes its sidecar.
        device: the best there is if left out.
        budget_s: a curve that might end after so many seconds is left for another run.
        settings: curves; ``default_settings(device)`` if left out.
        seed: of weights and order.
        options: of the command line, for the sidecar.

    Raises:
        ValueError: for a file of another machine, or one that does not match its sidecar.
    """
    device, out, start = device or best_device(), Path(out), time.perf_counter()
    settings = list(default_settings(device) if settings is None else settings)
    for setting in settings:
        _check(setting, device)
    rows = _kept(out)
    for other in {row["device"] for row in rows} - {machine_name(device)}:
        raise ValueError(
            f"out={out.name!r} holds measurements of {other}; valid: a file of its own for {machine_name(device)}"
        )
    done = {tuple(row[c] for c in KEY) for row in rows}
    waiting = [s for s in settings if s.key not in done]
    for number, setting in enumerate(waiting, 1):
        if time.perf_counter() - start + (setting.limit_s or 0.0) > budget_s:
            print(
                f"budget of {budget_s:.0f} s: {len(waiting) - number + 1} curves are left for another run", flush=True
            )
            break
        print(
            f"[{number}/{len(waiting)}] {' '.join(setting.key[:3])} guidance={setting.guidance} …", end="", flush=True
        )
        began = time.perf_counter()
        try:
            found = _profile(setting, device, seed=seed)
        except Exception as error:  # a mode that this machine lacks, for instance no compiler
            print(f" not available here ({(str(error).splitlines() or [repr(error)])[0][:90]})", flush=True)
            if device == "cuda":
                traceback.print_exc()
                torch.cuda.synchronize()  # fails, and ends the run, if the GPU is of no more use
            continue
        finally:
            if device == "cuda":
                gc.collect()  # a step and its compiled function hold each other
                torch.cuda.empty_cache()
        left_out = sorted(set(setting.batch_sizes) - {row["batch_size"] for row in found})
        if found:
            rate = measure_matrix_rate(setting.dtype, device)  # now: a shared machine has another one an hour later
            rows += [row | {RATE: rate} for row in found]
            write_rows(out, rows, (*COLUMNS, RATE))
            _write_sidecar(out, rows, device, seed, options)
            print(f" {time.perf_counter() - began:.0f} s", end="", flush=True)
        if left_out and not any(row["status"] == "out_of_memory" for row in found):
            print(
                f" without batch {', '.join(map(str, left_out))}: longer than {setting.limit_s:.0f} s",
                end="",
                flush=True,
            )
        print(flush=True)


def _kept(out: Path) -> list[dict]:
    """Rows of curves that were finished before."""
    if not out.exists():
        return []
    sidecar = meta_path(out)
    if sidecar.exists():
        try:
            read_meta(out)
        except ValueError as error:
            raise ValueError(
                f"out={out.name!r} does not match {sidecar.name}: it was changed, or cut off between the two; remove "
                "the sidecar to go on with these rows, or both to measure again"
            ) from error
    return list(csv.DictReader(out.open()))


def _write_sidecar(out: Path, rows: Sequence[dict], device: str, seed: int, options: str) -> None:
    root = project_root()
    place = out.resolve().relative_to(root).as_posix() if root in out.resolve().parents else out.name
    write_meta(
        out,
        kind="measured",
        command=f"splitpoint profile --out {place}{options}",
        seed=seed,
        licence="MIT",
        device=machine_name(device),
        settings={
            "curves": sorted({" ".join(str(row[c]) for c in KEY) for row in rows}),
            "tf32": False,
            "cudnn_benchmark": True,
        },
    )


def _options(words: Sequence[str]) -> str:
    """What was typed, without the file: ``--only mini`` of ``--out FILE --only mini``."""
    place = next(i for i, word in enumerate(words) if word.split("=")[0] == "--out")
    rest = [*words[:place], *words[place + (1 if "=" in words[place] else 2) :]]
    return "".join(f" {word}" for word in rest)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure denoising latency on this machine.")
    parser.add_argument("--out", type=Path, required=True, help="CSV file; run again to continue")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"))
    parser.add_argument("--budget-seconds", type=float, default=480.0)
    parser.add_argument("--curve-seconds", type=float, help="the most one curve may take; by default 60 to 180")
    parser.add_argument("--only", nargs="*", default=[], help="networks, all if left out: mini, sd15, …")
    arguments = parser.parse_args()
    if sys.platform == "darwin":
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    device = arguments.device or best_device()
    known = default_settings(device)
    for name in arguments.only:
        one_of("only", name, sorted({s.architecture for s in known}))
    settings = [
        replace(s, limit_s=arguments.curve_seconds or s.limit_s)
        for s in known
        if not arguments.only or s.architecture in arguments.only
    ]
    run_profile(arguments.out, device, arguments.budget_seconds, settings, options=_options(sys.argv[1:]))


if __name__ == "__main__":
    main()
