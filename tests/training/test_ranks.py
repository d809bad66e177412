"""What ranks tell each other and how they end. They are threads here, with a store of their own; the tests of `launch`
and of `distributed` start processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.distributed import HashStore, PrefixStore

from pykinml_func.errors import ConfigError, DataError, PeerFailedError, RankError
from pykinml_func.training import ranks as module
from pykinml_func.training.ranks import Ranks, joined

CPU = torch.device("cpu")


def test_one_rank_is_all_of_them() -> None:
    with joined("cpu", 1) as ranks:
        assert (ranks.rank, ranks.size, ranks.is_first, ranks.device) == (0, 1, True, CPU)
        assert ranks.signal_of_any(15) == 15
        values = torch.tensor([1.0, -2.0])
        assert torch.equal(ranks.total(values), values) and torch.equal(ranks.largest(values), values)
        with ranks.first_rank_first("anything"):
            ranks.wait()


def test_several_ranks_that_nobody_started_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    told = (
        r"2 ranks train in as many processes, and this is one alone; start them with `pykinml train`, or with torchrun"
    )
    with pytest.raises(ConfigError, match=told), joined("cpu", 2):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun says how many there are
    with joined("cpu", 2) as ranks:
        assert ranks.size == 1


@pytest.mark.parametrize(
    ("name", "local_rank", "expected"),
    [
        ("cpu", 3, "cpu"),
        ("meta", 0, "meta:0"),
        ("meta", 3, "meta:3"),
        ("meta:2,5", 1, "meta:5"),
        ("meta:4", 0, "meta:4"),
    ],
)
def test_each_rank_finds_its_device(monkeypatch: pytest.MonkeyPatch, name: str, local_rank: int, expected: str) -> None:
    """Of torch's imaginary devices, since there may be no other."""
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert module._device(name, local_rank) == torch.device(expected)


@pytest.mark.parametrize("name", ["meta:4", "meta:4,5"])
def test_a_rank_too_many_for_the_devices_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    told = (
        rf"device must name a GPU for each rank of a machine, got {name} for rank 2; name more, start fewer ranks, or"
    )
    with pytest.raises(ConfigError, match=told):
        module._device(name, 2)


@pytest.mark.parametrize("name", ["quantum", "cuda:99", "cpu:0,1"])
def test_a_device_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"device must be one that torch can use here, got '{name}'"):
        module._device(name, 0)


@pytest.fixture
def as_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Calls a function as each of two ranks at once; what it returned or raised."""
    monkeypatch.setattr(module, "_GRACE", 0.01)
    monkeypatch.setattr(module.dist, "new_group", lambda **_: None)

    def call(function: Callable[[Ranks], Any]) -> list[Any]:
        store = PrefixStore("test", HashStore())

        def as_rank(rank: int) -> Any:
            try:
                with module._together(rank, store):
                    return function(Ranks(CPU, rank, 2, store))
            except (Exception, KeyboardInterrupt) as error:
                return error

        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(as_rank, range(2)))

    return call


def test_the_first_rank_does_it_first(as_ranks: Callable[..., list[Any]]) -> None:
    done: list[int] = []

    def work(ranks: Ranks) -> None:
        with ranks.first_rank_first("it"):
            time.sleep(0.2 * ranks.is_first)
            done.append(ranks.rank)

    assert as_ranks(work) == [None, None]
    assert done == [0, 1]


@pytest.mark.parametrize("kind", [DataError, RuntimeError, KeyboardInterrupt])
def test_who_waits_for_the_first_rank_hears_that_it_failed(
    as_ranks: Callable[..., list[Any]], kind: type[BaseException]
) -> None:
    def work(ranks: Ranks) -> None:
        with ranks.first_rank_first("it"):
            assert ranks.is_first  # never the other one
            raise kind("no such file")

    first, other = as_ranks(work)
    if kind is DataError:
        assert isinstance(first, RankError) and str(first) == "rank 0: no such file"
    else:
        assert type(first) is kind
    assert isinstance(other, PeerFailedError)


def test_of_several_ranks_that_fail_one_says_why(
    as_ranks: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one waits meanwhile to be ended, or its end would be taken for the first failure."""
    waited: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waited.append)

    def work(ranks: Ranks) -> None:
        raise DataError(f"so says {ranks.rank}")

    found = as_ranks(work)
    assert sorted(type(error).__name__ for error in found) == ["PeerFailedError", "RankError"]
    (told,) = (str(error) for error in found if isinstance(error, RankError))
    assert told in ("rank 0: so says 0", "rank 1: so says 1")
    assert waited == [module._GRACE]


@pytest.mark.parametrize(
    "error", [RuntimeError("[gloo/pair.cc:5] Connection closed by peer"), torch.distributed.DistNetworkError("gone")]
)
def test_a_lost_rank_is_told_with_the_way_out(as_ranks: Callable[..., list[Any]], error: Exception) -> None:
    def work(ranks: Ranks) -> None:
        if ranks.is_first:
            raise error

    told = as_ranks(work)[0]
    assert isinstance(told, RankError)
    assert str(told).startswith("rank 0 lost another rank, which was killed or cut off; go on from the last checkpoint")
