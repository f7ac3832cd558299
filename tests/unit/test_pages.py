"""Memory in large pages."""

from pathlib import Path

import pytest
import torch

from quant_dllm.kernels import pages
from quant_dllm.kernels.pages import ADVICE, CHUNK, LARGE, mapped, room

MAPS = Path("/proc/self/smaps")


def flags(address: int) -> list[str]:
    """Return the flags of the mapping that an address lies in."""
    inside = False
    for line in MAPS.read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(number, 16) for number in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError("no mapping has the address")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(pages, "_chunk", None)
    monkeypatch.setattr(pages, "_used", 0)


@pytest.mark.skipif(ADVICE is None or not MAPS.is_file(), reason="Linux alone tells")
@pytest.mark.parametrize("make", [mapped, room])
def test_all_of_it_is_advised_to_be_in_large_pages(make):
    made = make(2 * LARGE + 12345)
    assert made.data_ptr() % LARGE == 0
    for at in (0, LARGE, 2 * LARGE + 12344):
        assert "hg" in flags(made.data_ptr() + at)


def test_rooms_lie_side_by_side_and_none_in_another():
    counts = (1, 63, 64, 5_000_000, 65, CHUNK - 1, 2 * CHUNK)
    made = [room(count) for count in counts]
    for i, one in enumerate(made):
        one.fill_(i)
    for i, (one, count) in enumerate(zip(made, counts, strict=True)):
        assert one.shape == (count,) and one.data_ptr() % 64 == 0
        assert bool((one == i).all())
    assert made[1].data_ptr() - made[0].data_ptr() == 64
    assert made[5].data_ptr() - made[4].data_ptr() != 128  # no room was left


def test_a_weight_keeps_the_chunk_that_it_lies_in():
    first, second = room(100), room(100)
    before = first.data_ptr()
    second.fill_(7)
    del first
    room(CHUNK)  # the next chunk
    assert second.data_ptr() == before + 128 and int(second.sum()) == 700


def test_without_large_pages_it_is_torchs_own_memory(monkeypatch):
    monkeypatch.setattr(pages, "ADVICE", None)
    made = room(1000)
    assert made.dtype == torch.uint8 and made.shape == (1000,)
    assert int(made.fill_(2).sum()) == 2000
