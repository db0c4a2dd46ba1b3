"""Select the named machines of ``data/latency_profiles/named.csv`` from a wider collection of published step times.

    python scripts/select_named_hardware.py COLLECTION.csv

The collection was written down by hand from public benchmark tables: one published number a row, and where it stands.
What is kept, and why, is said beside each rule; seconds per step are computed here from the published number.
"""

import argparse
import csv
import re
from collections import Counter, defaultdict
from pathlib import Path

from splitpoint.files import data_path, write_meta, write_rows

COLUMNS = (
    "device", "device_type", "architecture", "resolution_px", "dtype", "software", "software_detail", "guidance",
    "scope", "batch_size", "num_steps", "published_value", "published_unit", "step_s", "source", "source_version",
    "licence",
)  # fmt: skip
AS_COLLECTED = (
    "resolution_px", "dtype", "scope", "batch_size", "num_steps", "published_value", "published_unit", "source",
)  # fmt: skip
GPUS = ("edge_gpu", "consumer_gpu")
#: above it the sources decode images one by one or throttle, and a step is no longer the same work
LARGEST_BATCH = 16
#: an edge needs a line, and a line three batch sizes
FEWEST_SIZES = 3
#: (device, words of the software, words of the source): a series with a fault that its source does not explain
FAULTS = {
    ("RTX 4090", "vanilla", "torch2.0.mdx"): "kernels that did not know the card yet: slower at batch 1 than a 3090",
    ("RTX 4090", "xFormers", "torch2.0.mdx"): "kernels that did not know the card yet: slower at batch 1 than a 3090",
    ("RTX A6000", "no xformers", "lambda"): "time per image grows by half from batch 4 to 16",
    (
        "A100 80GB PCIe",
        "",
        "lambda",
    ): "out of line at a single size: batch 4 in fp16, batch 2 in fp32 and without xFormers",
    ("A100-40GB", "PyTorch fp16", "x-stable"): "twice every other eager series of this card",
}
#: first match wins; the short name that a reader asks for
SOFTWARE = (
    (r"nightly 2023-05 eager", "eager nightly"), (r"nightly 2023-05 torch.compile", "compiled nightly"),
    (r"torch\.compile|compile$", "compiled"), (r"SDPA|torch 2\.0\S* (ROCm )?eager", "eager"),
    (r"no xformers|vanilla|torch 1\.12|PyTorch 1\.12", "vanilla"), (r"(?i)xformers", "xformers"),
    (r"onnxruntime 1\.1[45]", "onnxruntime"), (r"AITemplate", "aitemplate"), (r"FlashAttention", "flash attention"),
    (r"Core ML", "core ml"), (r"precompiled_qnn_onnx", "qnn onnx"), (r"(?i)qnn", "qnn"),
    (r"ncnn, fast", "ncnn"), (r"ncnn, slow", "ncnn low memory"),
    (r"OnnxStream", "onnxstream"), (r"ONNX Runtime", "onnxruntime"),
)  # fmt: skip
NAMES = {
    "NVIDIA A100-40GB": "NVIDIA A100 40GB",
    "Tesla V100-SXM2-16GB": "NVIDIA V100-SXM2-16GB",
    "NVIDIA GeForce RTX 3060 (Windows 11)": "NVIDIA GeForce RTX 3060",
    "NVIDIA T4 (990 MHz lock, Azure NC4as_T4_v3)": "NVIDIA T4 at 990 MHz",
    "Intel Core i7-8750H (laptop CPU, 8 vcores in VMware)": "Intel Core i7-8750H",
    "OnePlus 13 (Snapdragon 8 Elite)": "OnePlus 13",
    "Qualcomm QRD phone (Snapdragon 8 Elite)": "Snapdragon 8 Elite QRD",
    "vivo iQOO 12 (Snapdragon 8 Gen 3)": "vivo iQOO 12",
    "QCS8550 (Proxy)": "QCS8550",
}


def step_seconds(value: float, unit: str, num_steps: str) -> float:
    """Seconds of one guided denoising step of the whole batch, from a published number and its unit."""
    if unit in ("it/s", "iter/s"):
        return 1 / value
    if unit == "s/it":
        return value
    if unit.startswith(("s per pipeline call", "s per image")):  # text encoder and decoder are in it
        return value / int(num_steps)
    if unit == "ms per pipeline call":
        return value / 1000 / int(num_steps)
    if unit == "ms per UNet call (one guided image)":
        return value / 1000
    if unit == "ms per UNet call (latent 1x4x64x64)":  # guidance asks such a network twice
        return 2 * value / 1000
    if unit == "s per single UNet call":
        return 2 * value
    raise ValueError(f"unit={unit!r} is not known")


def short_software(detail: str) -> str:
    """The short name of a software description."""
    return next(name for pattern, name in SOFTWARE if re.search(pattern, detail))


def why_not(row: dict) -> str | None:
    """Why a row of the collection is left out, or None."""
    gpu = row["hardware_kind"] in GPUS
    if row["quality"] not in ("clean", "end_to_end") or row["unet_evaluations_per_image_step"] != "2":
        return "steps or guidance not certain"
    if gpu and int(row["batch_size"]) > LARGEST_BATCH:
        return f"batch above {LARGEST_BATCH}"
    if row["resolution_px"] != "512x512" and not (
        row["model"] == "sdxl" and row["resolution_px"] in ("768x768", "1024x1024")
    ):
        return "a picture of another size"
    if row["dtype"] == "unstated" or (gpu and row["dtype"] not in ("fp16", "fp32")):
        return "number type not stated"
    for (device, software, source), fault in FAULTS.items():
        if row["hardware"].endswith(device) and source in row["source"] and _is_software(software, row["software"]):
            return fault
    return None


def _is_software(words: str, detail: str) -> bool:
    return words in detail and (words != "xformers" or "no xformers" not in detail)


def tidy(row: dict) -> dict:
    """A row of the selection from a row of the collection."""
    seconds = step_seconds(float(row["published_value"]), row["published_unit"], row["num_steps"])
    if abs(seconds / float(row["step_s"]) - 1) > 1e-4:
        raise ValueError(
            f"step_s={row['step_s']} of {row['hardware']} is {seconds:.6g} by its unit {row['published_unit']!r}"
        )
    return {
        "device": NAMES.get(row["hardware"], row["hardware"]),
        "device_type": row["hardware_kind"],
        "architecture": row["model"],
        "software": short_software(row["software"]),
        "software_detail": row["software"],
        "guidance": True,
        "step_s": seconds,
        "source_version": row["source_commit_or_date"],
        "licence": row["source_licence"].split(" (")[0],
        **{name: row[name] for name in AS_COLLECTED},
    }


def series(row: dict) -> tuple:
    """What the rows of one coherent series have in common."""
    return tuple(
        row[name]
        for name in ("hardware", "model", "resolution_px", "dtype", "software", "scope", "num_steps", "source")
    )


def select(collection: list[dict]) -> tuple[list[dict], Counter]:
    """The rows that are kept, and how many were left out for which reason."""
    reasons = [why_not(row) for row in collection]
    sizes = defaultdict(set)
    for row, reason in zip(collection, reasons):
        sizes[series(row)] |= set() if reason else {row["batch_size"]}
    for i, row in enumerate(collection):
        if reasons[i] is None and row["hardware_kind"] in GPUS and len(sizes[series(row)]) < FEWEST_SIZES:
            reasons[i] = "fewer than three batch sizes of a GPU"
    return [tidy(row) for row, reason in zip(collection, reasons) if reason is None], Counter(filter(None, reasons))


def main() -> None:
    """Write the selection and its sidecar, and print what was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="CSV with one published number a row")
    with parser.parse_args().collection.open(newline="") as file:
        collection = list(csv.DictReader(file))
    rows, left_out = select(collection)
    path = data_path("latency_profiles", "named.csv")
    write_rows(path, rows, COLUMNS)
    write_meta(
        path, kind="published", command="python scripts/select_named_hardware.py COLLECTION.csv",
        device="as named in each row; nothing was measured by this project",
        settings={"collected": len(collection), "largest_batch": LARGEST_BATCH, "fewest_sizes": FEWEST_SIZES},
        by_hand="the numbers were written down by hand from the tables that each row names, with their version",
        source=sorted({row["source"] for row in rows}), licence=" and ".join(sorted({row["licence"] for row in rows})),
    )  # fmt: skip
    print(f"{len(rows)} rows of {len({row['device'] for row in rows})} machines; left out:")
    for reason, count in left_out.most_common():
        print(f"{count:5d}  {reason}")


if __name__ == "__main__":
    main()
