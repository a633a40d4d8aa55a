"""Whatever people and chance do to a store beside its readers: right cells are read, or none."""

import json
import os
import subprocess
import sys
from pathlib import Path

# GMS_LMM_HISTORIES=200 for a long night; GMS_LMM_HISTORIES_SEED=N begins with the N-th.
SEQUENCES = int(os.environ.get("GMS_LMM_HISTORIES", "3"))
SEED = int(os.environ.get("GMS_LMM_HISTORIES_SEED", "0"))
BASE = Path(__file__).parents[2]
ASKED = ["--sequences", str(SEQUENCES), "--seed", str(SEED)]


def test_random_histories_end_with_the_right_store_and_no_reader_took_another_cell(
    tmp_path: Path, kl_folder: Path
) -> None:
    """Whole command lines: encodes, trainings, faults and kills, beside one another and in turn."""
    script = BASE / "tests" / "support" / "histories.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path, "--tokenizer", kl_folder, *ASKED],
        cwd=BASE,
        env={**os.environ, "PYTHONPATH": str(BASE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120 * SEQUENCES,
    )
    assert done.returncode == 0
    counted = json.loads(done.stdout)
    failed = counted.pop("failed")
    print(counted)  # noqa: T201  shown by pytest -s
    assert not failed, json.dumps(failed, indent=1, ensure_ascii=False)
    assert counted["sequences"] == SEQUENCES
    assert counted["cells consumed"] > 0
