"""Meetings of threads at one store: whatever happens, all members come to the same end."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore, Store, TCPStore

from pykernels.moe import rendezvous
from pykernels.moe.rendezvous import Meeting

MEMBERS = [1, 2, 5]
TIMEOUT = 0.1  # seconds


@pytest.fixture(autouse=True)
def short_slack() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendezvous, "_SLACK", 0.2)
        yield


def name_of(store: Store) -> str:
    """One for each round, whichever member asks."""
    own = random.randbytes(8).hex()
    found = store.compare_set("name", "", own).decode()
    return str(found)


def meet(store: Store, rank: int, connect: Callable[[Store], str] = name_of) -> str:
    return Meeting(store, rank, MEMBERS, TIMEOUT).hold(connect)


def meet_at_last(store: Store, rank: int, connect: Callable[[Store], str] = name_of) -> str:
    """Calls until one succeeds."""
    for _ in range(100):
        try:
            return meet(store, rank, connect)
        except (RuntimeError, KeyboardInterrupt):
            pass
    raise AssertionError(f"rank {rank} has not met the others")


def on_all(call: Callable[[int], list[str]]) -> list[list[str]]:
    with ThreadPoolExecutor(len(MEMBERS)) as pool:
        return list(pool.map(call, MEMBERS))


@pytest.mark.parametrize("seed", range(6))
def test_a_round_succeeds_for_all_or_for_none(seed: int) -> None:
    """Members come late, fail to connect, take too long, are interrupted, and come again."""
    store = HashStore()

    def call(rank: int) -> list[str]:
        draw = random.Random(100 * seed + rank)

        def connect(fresh: Store) -> str:
            time.sleep(draw.choice([0, 0, 0, 0.5, 0.9, 1.1, 2]) * TIMEOUT)
            error = draw.choice([None] * 6 + [RuntimeError("refused"), KeyboardInterrupt()])
            if error is not None:
                raise error
            return name_of(fresh)

        names = []
        for _ in range(3):
            time.sleep(draw.choice([0, 0.1, 0.3, 0.6]))
            names.append(meet_at_last(store, rank, connect))
        return names

    first, *others = on_all(call)
    assert len(set(first)) == 3
    assert others == [first, first]


@pytest.mark.parametrize("late", MEMBERS)
def test_the_outcome_is_the_store_s(late: int) -> None:
    """One member takes as long to connect as the others wait: nobody believes anything alone."""
    store = HashStore()
    successes: Counter[str] = Counter()

    def call(rank: int) -> list[str]:
        draw = random.Random(rank)

        def connect(fresh: Store) -> str:
            if rank == late:
                time.sleep(TIMEOUT + draw.uniform(-0.02, 0.02))
            return name_of(fresh)

        return [meet_at_last(store, rank, connect) for _ in range(5)]

    for names in on_all(call):
        successes.update(names)
    assert set(successes.values()) == {len(MEMBERS)}
    assert len(successes) == 5


@pytest.mark.parametrize("rank", MEMBERS)
def test_who_has_not_come(rank: int) -> None:
    missing = "rank 1 has" if rank != 1 else r"ranks \[2, 5\] have"
    with pytest.raises(RuntimeError, match=rf"^{missing} not come within 0\.4 s$"):
        meet(HashStore(), rank)


def test_who_has_left_is_not_missing() -> None:
    """Rank 2 gives up before rank 1, in whose newer round it is not: only rank 5 has never come."""
    store = HashStore()

    def call(rank: int) -> list[str]:
        if rank == 5:
            return []
        time.sleep(0.2 if rank == 1 else 0)
        with pytest.raises(RuntimeError) as error:
            meet(store, rank)
        return [str(error.value)]

    first, second, _ = on_all(call)
    assert first == ["rank 5 has not come within 0.4 s"]
    assert second == first


def test_why_they_do_not_connect() -> None:
    def call(rank: int) -> list[str]:
        def connect(fresh: Store) -> str:
            if rank == 2:
                raise RuntimeError("no network\nand many details")
            return name_of(fresh)

        with pytest.raises(RuntimeError) as error:
            meet(store, rank, connect)
        return [str(error.value)]

    store = HashStore()
    reason = "all have come, but not connected within 0.4 s (rank 2"
    for (error,) in on_all(call):
        assert error.startswith(reason)


def test_a_round_that_its_owner_has_left_open() -> None:
    """As a killed process does: it is no round of those that come later."""
    store = HashStore()
    rendezvous._Round.begin(store, MEMBERS)
    names = on_all(lambda rank: [meet(store, rank)])
    assert names == [names[0]] * 3


def test_a_store_that_is_gone() -> None:
    holder = TCPStore("127.0.0.1", 0, is_master=True)
    store = TCPStore("127.0.0.1", holder.port, is_master=False)
    del holder
    with pytest.raises(RuntimeError, match="store cannot be reached"):
        meet(store, 1)
