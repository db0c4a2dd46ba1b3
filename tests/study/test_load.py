import pytest

from splitpoint.study.load import stable_diffusion_parameters, storage


def test_stable_diffusion_is_counted_as_published():
    counts = stable_diffusion_parameters()
    assert [round(counts[part] / 1e6, 1) for part in ("unet", "vae", "text_encoder")] == [859.5, 83.7, 123.1]
    assert stable_diffusion_parameters(lora_rank=8)["lora"] == 2 * counts["lora"]


def test_storage_by_hand():
    table = storage([1, 10], {"unet": 5.0, "vae": 2.0, "text_encoder": 1.0}, adapter=0.5)
    sizes = table.pivot(index="arrangement", columns="users", values="bytes")
    assert sizes[10].to_dict() == {
        "a whole personal pipeline each": 80,
        "a personal U-Net each": 53,
        "one model and a LoRA each": 13,
        "one cluster-wide model": 8,
    }
    assert sizes.loc["one cluster-wide model", 1] == pytest.approx(8)
