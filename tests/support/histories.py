"""Play random histories of a store by whole command lines, readers beside writers, and judge them.

`python histories.py FOLDER [--tokenizer FOLDER] [--sequences N] [--seed N] [--operations N]`; the
sequence of seed N is that of `--seed N --sequences 1`, in which only what is begun at once or
killed by the clock may fall out otherwise. Prints one JSON object; a line on stderr a sequence.
"""

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import small
from children import Moment, call, prepare
from faults import FAULTS
from oracle import References, run_faults, store_faults, student_faults, wrong_cells
from world import World

NAMES = tuple(f"{kind} ({i})" for kind in ("benign", "malignant") for i in range(1, 8))
# How many files of a store a command touches, and how many it changes: a moment is drawn within.
TOUCHES = {"encode": 300, "prune": 400, "train": 120, "distill": 90, "ceiling": 70}
CHANGES = {"encode": 180, "prune": 400, "train": 40}
OTHERS = 70


class History(World):
    """Operations on a world as they are drawn, and judgement at the end."""

    # --- operations

    def ingest(self) -> None:
        args = ["ingest", str(self.raw), "--layout", "busi", "-o", str(self.manifest)]
        args += ["--split", "0.7/0.3", "--val-fraction", "0.25", *self.division]
        if self.run(args) == 0:
            self.stale = False
            self.snapshots.append(self.folder / "snapshots" / str(len(self.snapshots)))
            shutil.copytree(self.raw, self.snapshots[-1] / "raw")
            shutil.copyfile(self.manifest, self.snapshots[-1] / "m.parquet")

    def encode(self) -> None:
        self.draw_settings()
        code = self.run(self.encode_args())
        if code == 4 and self.rng.random() < 0.6:
            code = self.run(self.encode_args("--repair"))
        if code == 0 and self.rng.random() < 0.6:
            self.copies.append(self.folder / "copies" / str(len(self.copies)))
            shutil.copytree(self.store, self.copies[-1])

    def partitions(self) -> None:
        self.draw_settings()
        count = self.rng.randint(2, 3)
        shares = [self.encode_args("--partition", f"{i + 1}/{count}") for i in range(count)]
        children = [self.start(args) for args in shares]
        for child in children:
            self.end(child, "at once: ")
        if all("is being encoded by partitions" in child.talk for child in children):
            self.fail("no partition is at work, and each is told to wait for them", "refusals")

    def split(self) -> None:
        """Another split, sometimes with folds; the store follows in most cases."""
        self.division = ("--seed", str(self.rng.randint(0, 3)))
        if self.rng.random() < 0.4:
            self.division += ("--folds", "2")
        self.ingest()
        if self.rng.random() < 0.8:
            self.encode()

    def data(self) -> None:
        """Images and masks that change, come and go; manifest and store follow in most cases."""
        for _ in range(self.rng.randint(1, 3)):
            self.change_data()
        if self.rng.random() < 0.85:
            self.ingest()
        if self.rng.random() < 0.85:
            self.encode()

    def fault(self) -> None:
        name = self.rng.choice(list(FAULTS))
        done = FAULTS[name](self.rng, self.store, self.copies) if self.store.exists() else None
        if done is not None:
            self.counts["faults"] += 1
            self.damaged = True
            self.steps.append(f"fault: {name} {done}")

    def look(self) -> None:
        """A command that reads alone, or changes nothing."""
        dry = self.encode_args("--dry-run")
        self.run(self.rng.choice([dry, ["inspect", str(self.store)], ["verify", str(self.store)]]))

    def repair(self) -> None:
        self.run(self.encode_args("--repair"))

    def prune(self) -> None:
        self.run(self.prune_args())

    def read(self) -> None:
        self.run(self.reader_args())

    def killed(self) -> None:
        """A command killed before a change of a file, or by the clock; then often once more."""
        args = self.train_args() if self.rng.random() < 0.4 else self.writer_args()
        if self.rng.random() < 0.6:
            self._run_and_kill(args)
        else:
            child = self.start(args)
            time.sleep(0.5 * self.rng.random())
            child.kill()
            self.end(child, "killed by the clock: ")
        if self.rng.random() < 0.7:
            more = ["--resume"] if args[0] == "train" and "--resume" not in args else []
            self.run([*args, *more])

    def beside(self) -> None:
        """A command held before it touches a file of the store; others run; then it goes on."""
        args = self.reader_args() if self.rng.random() < 0.8 else self.writer_args()
        number = 1 + int(TOUCHES.get(args[0], OTHERS) * self.rng.random() ** 1.5)
        held = self.start(args, Moment(number, "hold", str(self.store)))
        self.steps.append(f"held at touch {number} [{held.place.name}]")
        if held.until_held():
            self.held = held
            self.counts["held"] += 1
            for _ in range(self.rng.choice([1, 1, 2])):
                self.rng.choice(
                    [
                        self.encode,
                        self.encode,
                        self.data,
                        self.split,
                        self.writer,
                        self.fault,
                        self.fault,
                        self.prune,
                        self.killed_writer,
                    ]
                )()
            self.held = None
            held.release()
        self.end(held, "then, released: ")

    def writer(self) -> None:
        self.run(self.writer_args())

    def killed_writer(self) -> None:
        self._run_and_kill(self.writer_args())

    def _run_and_kill(self, args: list[str]) -> None:
        number = 1 + int(CHANGES.get(args[0], OTHERS) * self.rng.random() ** 3)
        moment = Moment(number, "kill", f"{self.folder}/")
        self.run(args, moment, f"to be killed at change {number}: ")

    def race(self) -> None:
        """Two commands begun at once, or nearly; one of them is sometimes killed."""
        commands = [self.reader_args(), self.writer_args()]
        self.rng.shuffle(commands)
        self._at_once(commands)

    def two_readers(self) -> None:
        """Two trainings into one folder or two, or two that teach one student."""
        if self.rng.random() < 0.3:
            args = ["distill", "--latents", str(self.store), "--precision", "fp32"]
            self._at_once([[*args, "--device", "cpu"]] * 2)
        elif self.rng.random() < 0.5:
            self._at_once([self.train_args()] * 2)
        else:
            self._at_once([self.train_args(), self.train_args()])

    def _at_once(self, commands: list[list[str]]) -> None:
        children = []
        for args in commands:
            children.append(self.start(args))
            time.sleep(0.2 * self.rng.random() ** 2)
        if self.rng.random() < 0.3:
            time.sleep(0.3 * self.rng.random())
            self.rng.choice(children).kill()
        for child in children:
            self.end(child, "at once: ")

    # --- a whole history

    def play(self, operations: int) -> None:
        """The first store, then operations as they are drawn, then judgement."""
        call(_write_images, str(self.raw))
        self.ingest()
        self.encode()
        weights = {
            self.split: 2, self.data: 4, self.encode: 3, self.partitions: 2, self.repair: 1,
            self.look: 1, self.prune: 1, self.fault: 3, self.read: 4, self.killed: 4,
            self.beside: 6, self.race: 2, self.two_readers: 1,
        }  # fmt: skip
        for operation in self.rng.choices(list(weights), list(weights.values()), k=operations):
            operation()
            self._judge_files()
        self._bring_to_the_end()
        self._judge_consumed()

    def _judge_files(self) -> None:
        for what in (*run_faults(self.runs), *student_faults(self.store)):
            if what not in self.failures:
                self.fail(what, "bad run folders")

    def _bring_to_the_end(self) -> None:
        """Encode what the data set is now, mend what is wrong; the store is then a fresh one's."""
        self.steps.append("to the end:")
        if self.stale:
            self.ingest()
        if self.store.with_name("store.zarr.old").exists() and not self.store.exists():
            self.run(["prune", str(self.store)])
        if self.run(self.encode_args(*self._repair_if_wanted())) != 0:
            self._fail_with_last("no encode ends the store", "unfinished stores")
        elif self.run(["verify", str(self.store)]) != 0:
            self._fail_with_last("a finished store has faults", "unfinished stores")
        else:
            self._judge_store()

    def _repair_if_wanted(self) -> list[str]:
        """What verify says that an encode needs."""
        checked = self.start(["verify", str(self.store), "--json"])
        self.end(checked)
        faults = json.loads(checked.data)["faults"] if checked.data else []
        return ["--repair"] if {fault["kind"] for fault in faults} - {"unfinished"} else []

    def _judge_store(self) -> None:
        reference = self.references.of(self.states[0])
        assert reference is not None
        try:
            wrong, found = store_faults(self.store, reference)
        except RuntimeError:  # said on stderr
            wrong, found = 0, ["a finished store cannot be read by zarr"]
        self.counts["wrong cells in finished stores"] += wrong
        for what in found:
            self.fail(what, "wrong finished stores")
        if self.run(self.train_args(out="last")) != 0:
            self._fail_with_last("no training on a finished store", "refusals")
        self._judge_files()

    def _fail_with_last(self, what: str, kind: str) -> None:
        self.fail(f"{what}: {self.children[-1].error}", kind)

    def _judge_consumed(self) -> None:
        """Whoever read latents read those of one state: that of the run's receipt, if there is."""
        for child in self.children:
            if not (lines := child.consumed):
                continue
            receipt = lines[0]["receipt"]
            self.counts["cells consumed"] += sum(len(line["cells"]) for line in lines)
            if receipt is None and child.args[0] != "train":
                wrong = self._nearest(lines)
            elif receipt is None or not (one := self.references.named(receipt, self.states)):
                wrong = ["its receipt is of no state that the store was asked to be in"]
            else:
                wrong = list(wrong_cells(lines, one))
            if wrong:
                self.counts["wrong cells consumed"] += len(wrong)
                what = f"[{child.place.name}] {child.args[0]}, exit {child.code}"
                self.fail(f"{what}: {len(wrong)} wrong: {wrong[0]}", "wrong readers")

    def _nearest(self, lines: list[dict[str, Any]]) -> list[str]:
        """What is wrong with cells of some state, that in which the least is."""
        fewest: list[str] | None = None
        for state in self.states:
            if reference := self.references.of(state):
                wrong = list(wrong_cells(lines, reference))
                if fewest is None or len(wrong) < len(fewest):
                    fewest = wrong
                if not wrong:
                    break
        return fewest or []


def _write_images(root: str) -> None:
    small.write_busi(Path(root), NAMES)


def _save_tokenizer(folder: str) -> None:
    small.small_kl().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--sequences", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operations", type=int, default=14)
    parser.add_argument("--keep", action="store_true", help="keep the folders of all sequences")
    asked = parser.parse_args()
    prepare()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = asked.tokenizer
    if tokenizer is None:
        tokenizer = folder / "kl"
        call(_save_tokenizer, str(tokenizer))
    references = References(folder / "references", tokenizer)
    totals: Counter[str] = Counter()
    failed = []
    for seed in range(asked.seed, asked.seed + asked.sequences):
        started = time.monotonic()
        history = History(seed, folder / f"sequence-{seed}", tokenizer, references)
        history.play(asked.operations)
        totals.update(sequences=1)
        totals.update(history.counts)
        found = history.failures
        if found:
            failed.append({"seed": seed, "failures": found, "steps": history.steps})
        seconds = time.monotonic() - started
        sys.stderr.write(f"sequence {seed}: {seconds:.1f} s, {'; '.join(found) or 'right'}\n")
        if not (asked.keep or found):
            shutil.rmtree(history.folder)
    sys.stdout.write(json.dumps({**dict(sorted(totals.items())), "failed": failed}) + "\n")


if __name__ == "__main__":
    main()
