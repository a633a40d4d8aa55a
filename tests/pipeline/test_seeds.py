"""Seeds of epochs, lessons and steps."""

from pipeline.seeds import seed_at


def test_a_million_numbers_of_neighbouring_seeds_do_not_meet() -> None:
    # Runs on disk were drawn by these numbers; others would resume to other weights.
    assert [seed_at(0, 7), seed_at(3, 2)] == [7, 3_000_011]
    assert seed_at(1, 0) > seed_at(0, 1_000_000)
