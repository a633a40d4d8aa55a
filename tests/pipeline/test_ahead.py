"""Work ahead of its reader: in order, bounded, errors in their place."""

import threading

import pytest

from pipeline.ahead import map_ahead


def test_results_come_in_the_order_of_the_items_whoever_finishes_first() -> None:
    second_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_done.wait(timeout=30)
        if item == 1:
            second_done.set()
        return 10 * item

    assert list(map_ahead(work, [0, 1, 2])) == [0, 10, 20]


def test_no_more_than_ahead_items_are_begun_before_a_result_is_read() -> None:
    drawn = []

    def items() -> object:
        for item in range(100):
            drawn.append(item)
            yield item

    results = map_ahead(str, items(), ahead=4)
    assert next(results) == "0"
    assert drawn == [0, 1, 2, 3, 4]


def test_an_error_is_raised_in_the_place_of_its_result() -> None:
    results = map_ahead(lambda item: 1 / item, [1, 2, 0, 4])
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_nothing_ahead_is_done_in_the_reader_s_own_thread_when_it_asks() -> None:
    done: list[int] = []

    def work(item: int) -> str:
        done.append(item)
        return threading.current_thread().name

    results = map_ahead(work, [0, 1], ahead=0)
    assert done == []
    assert next(results) == threading.current_thread().name
    assert done == [0]


def test_what_is_not_begun_when_the_reader_stops_is_never_done() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            go_on.wait(60)
        return item

    results = map_ahead(work, range(500), ahead=500)
    assert next(results) == 0
    threading.Timer(1, go_on.set).start()
    results.close()  # type: ignore[attr-defined]  # waits for those that are begun
    assert len(begun) < 100
