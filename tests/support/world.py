"""A data set, the store that follows it and runs of it: commands as they are given and end."""

import random
from collections import Counter
from pathlib import Path

import small
from children import HUNG_S, Child, Moment
from oracle import SIZE_PX, References, State

EXITS = {0, 2, 3, 4, 5}
FEWEST = 9  # so that each split keeps an image
TRAINING = ("--loss", "lm", "--width", "16", "--device", "cpu")
COMPOUND = ("--loss", "compound", "--seg-decoder", "full", "--epochs", "1")


class World:
    """A data set, its store and runs; every command that was given, in order, and what was wrong.

    steps     what was done, in words; a command with its exit code and the name of its folder
    failures  what may not be, in words
    counts    of commands, kills, failures by kind and so on
    """

    def __init__(self, seed: int, folder: Path, tokenizer: Path, references: References) -> None:
        self.rng = random.Random(seed)
        self.folder, self.tokenizer, self.references = folder, tokenizer, references
        self.raw, self.manifest = folder / "raw", folder / "m.parquet"
        self.store, self.runs = folder / "store.zarr", folder / "runs"
        self.views, self.seed = self.rng.randint(1, 3), 0
        self.division: tuple[str, ...] = ("--seed", "0")
        self.stale = False  # whether images have changed since they were ingested
        self.damaged = False  # whether files of the store were tampered with since it was mended
        self.new_names = 0
        self.snapshots: list[Path] = []
        self.copies: list[Path] = []
        self.states: list[State] = []
        self.children: list[Child] = []
        self.held: Child | None = None
        self.steps: list[str] = []
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()

    # --- commands

    def start(self, args: list[str], moment: Moment | None = None) -> Child:
        """Begin a command; what an encode asks for is from now on a state the store may be in."""
        if args[0] == "encode" and "--dry-run" not in args:
            self._note_state(State(self.snapshots[-1], self.views, self.seed))
        if "--manifest" in args:
            for state in list(self.states):
                kept = self.snapshots[-1] / "m.parquet"
                self._note_state(State(state.snapshot, state.views, state.seed, kept))
        place = self.folder / "commands" / f"{len(self.children):03}"
        child = Child(args, place, moment)
        self.children.append(child)
        self.counts["commands"] += 1
        return child

    def end(self, child: Child, how: str = "") -> int | None:
        """Wait for a command's end, and put down what it was, and what it may not be."""
        if self.held and child is not self.held and not child.wait(HUNG_S / 4):
            self.held.release()  # it may wait for the one that is held
        hung = not child.wait()
        if hung:
            child.kill()
            child.wait()
        step = f"{how}{self._words(child)} → {child.code} [{child.place.name}]"
        self.steps.append(step)
        self.counts["kills"] += child.code == -9
        self.counts["trainings"] += child.args[0] == "train"
        self.counts[f"exit {child.args[0]} {child.code}"] += 1
        if hung:
            self.fail(f"hung: {step}", "hung")
        elif child.code != -9 and child.code not in EXITS:
            self.fail(f"exit code {child.code}: {step}", "unexpected exit codes")
        if "Traceback" in child.talk or "Exception ignored" in child.talk:
            self.fail(f"traceback: {step}: {child.error}", "tracebacks")
        # Nothing here is commanded that may not be; what was held may be told of another store.
        if child.code == 2 and not how.startswith("then"):
            self.fail(f"a usage error: {step}: {child.error}", "usage errors")
        return child.code

    def _words(self, child: Child) -> str:
        """A command without what is the same in all."""
        words = " ".join(child.args).replace(f"{self.folder}/", "")
        for same in (f"--tokenizer {self.tokenizer}", "--device cpu", f"--size {SIZE_PX}"):
            words = words.replace(f" {same}", "")
        return words

    def run(self, args: list[str], moment: Moment | None = None, how: str = "") -> int | None:
        """A command from begin to end; a writer whom nothing stands in the way has to succeed."""
        child = self.start(args, moment)
        code = self.end(child, how)
        if args[0] == "encode" and "--repair" in args and code == 0:
            self.damaged = False
        free = not (moment or self.held or self.damaged or self.stale)
        if free and args[0] in ("encode", "prune") and code and "cut short" not in child.error:
            self.fail(f"refused: {self.steps[-1]}: {child.error}", "refusals")
        return code

    def fail(self, what: str, kind: str) -> None:
        self.failures.append(what)
        self.counts[kind] += 1

    def _note_state(self, state: State) -> None:
        if state in self.states:
            self.states.remove(state)
        self.states.insert(0, state)  # the latest first: it is the likeliest

    def encode_args(self, *more: str) -> list[str]:
        args = ["encode", str(self.manifest), str(self.store), "--tokenizer", str(self.tokenizer)]
        args += ["--views", str(self.views), "--seed", str(self.seed), "--size", str(SIZE_PX)]
        return [*args, "--device", "cpu", *more]

    def train_args(self, *more: str, out: str | None = None) -> list[str]:
        rng = self.rng
        run = out or f"r{rng.randint(0, 6)}"
        args = ["train", "--latents", str(self.store), "--out", str(self.runs / run), *TRAINING]
        args += ["--epochs", str(rng.randint(2, 4)), "--batch-size", rng.choice(["1", "4"])]
        if rng.random() < 0.5:
            args += ["--residency", "stream", "--memory-gib", rng.choice(["0.00001", "0.0001"])]
        if "--folds" in self.division and rng.random() < 0.5:
            args += ["--fold", "0"]
        args += rng.choice([[], [], ["--resume"], ["--overwrite"], ["--resume", "--overwrite"]])
        if rng.random() < 0.1:
            args += COMPOUND
        return [*args, *more]

    def reader_args(self) -> list[str]:
        """A command that reads the store: a training more often than not."""
        rng, store = self.rng, str(self.store)
        finished = sorted(path.parent for path in self.runs.glob("*/summary.json"))
        kind = rng.choice(
            ["train"] * 5 + ["evaluate"] * 2 + ["ceiling", "distill", "verify", "diff"]
        )
        if kind == "evaluate" and finished:
            args = ["evaluate", "--run", str(rng.choice(finished)), "--latents", store]
            args += ["--split", rng.choice(["test", "train", "val"]), "--device", "cpu"]
            return args + rng.choice([[], ["--allow-seen"]])
        if kind == "ceiling":
            return ["ceiling", store, "--split", "all", "--device", "cpu"]
        if kind == "distill":
            return ["distill", "--latents", store, "--precision", "fp32", "--device", "cpu"]
        if kind == "verify":
            return ["verify", store]
        if kind == "diff" and self.copies:
            return ["diff", store, str(rng.choice(self.copies))]
        return self.train_args()

    def writer_args(self) -> list[str]:
        """A command that writes to the store."""
        kind = self.rng.choice(["encode"] * 5 + ["repair", "prune", "prune", "share"])
        if kind == "repair":
            return self.encode_args("--repair")
        if kind == "prune":
            return self.prune_args()
        self.draw_settings()
        return self.encode_args(*(["--partition", "1/2"] if kind == "share" else []))

    def prune_args(self) -> list[str]:
        more = ["--manifest", str(self.manifest)] if self.rng.random() < 0.4 else []
        return ["prune", str(self.store), *more]

    def draw_settings(self) -> None:
        """Other views, another seed of views, or neither."""
        rng = self.rng
        if rng.random() < 0.4:
            self.seed = rng.randint(0, 2)
        if rng.random() < 0.4:
            self.views = rng.randint(1, 3)

    def change_data(self) -> None:
        found = self.raw.glob("*/*/*.png")
        names = sorted(path.stem for path in found if "_mask" not in path.stem)
        name = self.rng.choice(names)
        image = small.image_path(self.raw, name)
        masks = sorted(image.parent.glob(f"{name}_mask*.png"))
        kind = self.rng.choice(["image", "mask", "rename", "add", "add", "remove", "remove"])
        if kind == "image":
            small.edit_image(self.raw, name)
        elif kind == "mask":
            small.turn_mask(masks[0])
        elif kind == "remove" and len(names) > FEWEST:
            for path in (image, *masks):
                path.unlink()
        else:
            self.new_names += 1
            new = f"{name.split(' ')[0]} ({20 + self.new_names})"
            if kind == "rename":
                for path in (image, *masks):
                    path.rename(path.with_name(path.name.replace(name, new)))
            else:
                small.write_busi(self.raw, (new,))
                name = new
        self.stale = True
        self.steps.append(f"data: {kind} {name}")
