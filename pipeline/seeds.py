"""Seeds of what is drawn anew at each epoch, lesson or step: pure functions of (seed, number)."""


def seed_at(seed: int, number: int) -> int:
    """Seed of a generator for one number of a run: seed · 1,000,003 + number.

    The factor, a prime, keeps the numbers of neighbouring seeds apart. Four draw from it, each
    with a generator of its own, so that their streams are one where seed and number are:

        lmm.batches               epoch   order and views of the samples, noise of the posterior
        lmm.baseline.pixels       epoch   the same order and views
        lmm.student.distillation  lesson  the pairs that a student learns from
        pipeline.tiny_vae.recipe  step    noise of the posterior
    """
    return seed * 1_000_003 + number
