"""The student: what it is taught on, what it remembers, when the kept one is used."""

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from click.testing import CliRunner

import lmm.student.file
from cli.main import main
from lmm.decoder import MaskDecoder
from lmm.student.distillation import LATER_LR, Distillation, distil, synthetic_latents
from lmm.student.file import STUDENT_FILE, kept_student, load_student, measure
from lmm.student.network import MaskStudent
from pipeline.errors import ArtefactError
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer

CPU = torch.device("cpu")


def z_masks(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def teacher(tokenizer: Tokenizer) -> MaskDecoder:
    return MaskDecoder(tokenizer)


@pytest.fixture
def taught(teacher: MaskDecoder) -> Distillation:
    torch.manual_seed(0)
    distillation = Distillation(MaskStudent(4, 8), teacher, LATER_LR, seed=0)
    distillation.remember(z_masks(), 100)
    return distillation


def test_a_student_gives_one_logit_for_each_pixel_in_its_place() -> None:
    student = MaskStudent(4, 8)
    assert student(torch.zeros(2, 4, 5, 7)).shape == (2, 40, 56)
    with torch.no_grad():
        student.head[1].weight.zero_()
        student.head[1].bias.copy_(torch.arange(64.0))
    # Channel 8·y + x of a cell is its pixel (y, x).
    cell = student(torch.zeros(1, 4, 1, 1))[0]
    torch.testing.assert_close(cell, torch.arange(64.0).view(8, 8))


def test_synthetic_latents_are_convex_mixtures_with_noise() -> None:
    draw = torch.Generator().manual_seed(0)
    of_one = torch.full((5, 4, 8, 8), 7.0)  # no spread, so no noise; every mixture is the same
    torch.testing.assert_close(synthetic_latents(of_one, 20, draw), torch.full((20, 4, 8, 8), 7.0))
    z_mask = torch.zeros(2, 1, 8, 8)
    z_mask[1] = 1
    means = synthetic_latents(z_mask, 400, draw).mean(dim=(1, 2, 3))
    assert float(means.min()) > -0.1
    assert float(means.max()) < 1.1
    # Some are one latent nearly alone, some a mixture.
    assert 0.2 < float(((means > 0.1) & (means < 0.9)).float().mean()) < 0.9


def test_lessons_bring_the_student_nearer_to_the_frozen_decoder(taught: Distillation) -> None:
    first = [float(taught.lesson(number)) for number in range(10)]
    for number in range(10, 150):
        taught.lesson(number)
    last = [float(taught.lesson(number)) for number in range(150, 160)]
    assert sum(last) < sum(first)


def test_what_is_remembered_is_the_frozen_decoders_answer(
    taught: Distillation, teacher: MaskDecoder
) -> None:
    with torch.no_grad():
        expected = teacher(z_masks().half().float())
    torch.testing.assert_close(taught.grey / 255.0, expected, rtol=0, atol=0.51 / 255)


def test_only_the_latest_are_remembered(taught: Distillation) -> None:
    later = z_masks(12)[8:]
    taught.remember(later, at_most=6)
    assert len(taught.grey) == 6
    assert torch.equal(taught.z_mask_hat[2:], later.half())
    assert torch.equal(taught.z_mask_hat[:2], z_masks()[6:].half())


def test_in_training_one_level_of_each_sample_is_decoded_in_turn(taught: Distillation) -> None:
    levels = torch.arange(3.0).view(3, 1, 1, 1, 1) + torch.zeros(3, 5, 4, 8, 8)
    taught.learn(levels, step=1)
    assert taught.z_mask_hat[-5:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1]


def test_agreement_leaves_masks_of_few_pixels_out(
    taught: Distillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = torch.zeros(3, 64, 64, dtype=torch.bool)
    frozen[0, :10, :10] = True  # 100 pixels
    frozen[1, :20, :10] = True  # 200 pixels
    frozen[2, :9, :11] = True  # 99 pixels
    students = torch.zeros_like(frozen)
    students[0, :10, :10] = True
    students[1, :10, :10] = True
    monkeypatch.setattr(taught.decoder, "masks", lambda z: students[z[:, 0, 0, 0].long()])
    z = torch.arange(3.0).view(3, 1, 1, 1)
    expected = (1 + 2 * 100 / (200 + 100)) / 2
    assert taught.decoder.agreement(z, frozen) == pytest.approx(expected)
    assert taught.decoder.agreement(z[2:], frozen[2:]) is None


def test_a_distillation_goes_on_from_its_tensors_bit_for_bit(
    taught: Distillation, teacher: MaskDecoder
) -> None:
    taught.lesson(0)
    again = Distillation(MaskStudent(4, 8), teacher, LATER_LR, seed=0)
    again.load({name: tensor.clone() for name, tensor in taught.tensors().items()})
    for one in (taught, again):
        one.learn(z_masks(6).view(3, 2, 4, 8, 8), step=7)
    for name, tensor in taught.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_teaching_is_the_same_each_time(teacher: MaskDecoder) -> None:
    steps: list[tuple[int, int]] = []
    a = distil(teacher, z_masks(), 8, 4, lambda *done: steps.append(done))
    b = distil(teacher, z_masks(), 8, 4)
    for name, tensor in a.tensors().items():
        assert torch.equal(tensor, b.tensors()[name]), name
    assert steps[-1] == (12, 12)


def test_a_kept_student_is_used_and_nothing_is_decoded_again(
    store_copy: Path, teacher: MaskDecoder
) -> None:
    store = open_store(str(store_copy))
    assert kept_student(store, CPU) is None
    student = load_student(store, teacher).network
    calls = teacher.calls
    again = load_student(store, teacher).network
    assert teacher.calls == calls
    assert all(
        torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True)
    )


def test_of_two_that_need_a_student_at_once_one_teaches_and_both_use_it(
    store_copy: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[int] = []
    distil = lmm.student.file.distil

    def count(*arguments: Any) -> Distillation:
        taught.append(1)
        time.sleep(0.3)  # in which the other sees that there is none yet
        return distil(*arguments)

    monkeypatch.setattr(lmm.student.file, "distil", count)
    stores = [open_store(str(store_copy)) for _ in range(2)]
    with ThreadPoolExecutor() as threads:
        both = list(threads.map(lambda s: load_student(s, MaskDecoder(tokenizer)).digest, stores))
    assert taught == [1]
    assert both[0] == both[1]
    assert sorted(p.name for p in store_copy.parent.glob("copy*")) == [
        "copy.zarr",
        f"copy.zarr.{STUDENT_FILE}",
    ]


def test_a_student_of_another_state_of_the_store_is_made_anew(
    store_copy: Path, teacher: MaskDecoder
) -> None:
    load_student(open_store(str(store_copy)), teacher)
    receipt = store_copy / "receipt.json"
    receipt.write_text(receipt.read_text().replace('"image_mean": "', '"image_mean": "0'))
    assert kept_student(open_store(str(store_copy)), CPU) is None


def test_a_student_says_at_which_precision_it_was_taught(
    store_copy: Path, tokenizer: Tokenizer
) -> None:
    store = open_store(str(store_copy))
    taught = load_student(store, MaskDecoder(tokenizer, "bf16"))
    with safetensors.safe_open(f"{store_copy}.{STUDENT_FILE}", "pt") as file:
        assert file.metadata() == {"precision": "bf16"}
    # At another precision it is used as it is.
    again = load_student(store, MaskDecoder(tokenizer, "fp32"))
    content = Path(f"{store_copy}.{STUDENT_FILE}").read_bytes()
    assert (
        taught.origin
        == again.origin
        == {"digest": hashlib.sha256(content).hexdigest(), "precision": "bf16"}
    )


def test_a_student_that_does_not_say_its_precision_is_made_anew(
    store_copy: Path, teacher: MaskDecoder
) -> None:
    store = open_store(str(store_copy))
    load_student(store, teacher)
    path = Path(f"{store_copy}.{STUDENT_FILE}")
    path.write_bytes(safetensors.torch.save(safetensors.torch.load(path.read_bytes())))
    assert kept_student(store, CPU) is None


def test_train_says_that_a_student_was_taught_at_another_precision_and_records_it(
    store_copy: Path, tmp_path: Path
) -> None:
    words = ["distill", "--latents", str(store_copy), "--precision", "bf16", "--json"]
    distilled = CliRunner().invoke(main, words)
    assert json.loads(distilled.stdout)["precision"] == "bf16"
    for precision, said in (("fp32", 1), ("bf16", 0)):
        run = tmp_path / precision
        words = ["train", "--latents", str(store_copy), "--out", str(run), "--epochs", "1"]
        words += ["--width", "16", "--batch-size", "2", "--precision", precision, "--json"]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        assert result.stderr.count("was taught in bf16, not fp32: used as it is") == said
        student = json.loads((run / "run.json").read_text())["student"]
        content = Path(f"{store_copy}.{STUDENT_FILE}").read_bytes()
        assert student == {"digest": hashlib.sha256(content).hexdigest(), "precision": "bf16"}


def test_a_damaged_student_is_an_error_that_names_its_file(
    store_copy: Path, teacher: MaskDecoder
) -> None:
    store = open_store(str(store_copy))
    load_student(store, teacher)
    path = Path(f"{store_copy}.{STUDENT_FILE}")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtefactError, match=r"student\.safetensors is damaged") as error:
        kept_student(store, CPU)
    assert "delete it" in str(error.value)


def test_a_student_is_measured_on_latents_it_was_not_taught_on(
    store_copy: Path, teacher: MaskDecoder
) -> None:
    store = open_store(str(store_copy))
    found = measure(store, teacher, load_student(store, teacher).network)
    student = MaskStudent(4, 8)
    assert found["parameters"] == sum(p.numel() for p in student.parameters())
    assert found["agreement"] is None or 0 <= found["agreement"] <= 1


def test_distill_says_when_the_student_was_there(store_copy: Path) -> None:
    words = ["distill", "--latents", str(store_copy)]
    first, second = (CliRunner().invoke(main, words) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output
    assert "was made of this store before" not in first.output
    assert "was made of this store before" in second.output
    assert Path(f"{store_copy}.{STUDENT_FILE}").exists()
