"""Several processes come to what one comes to; `team_lab` is what each of them does."""

from pathlib import Path

import pytest
import team_lab
import torch

from petomo.core.errors import UserError
from petomo.core.parallel import ALONE, Team
from processes import ends, start_team

LAB = Path(__file__).with_name("team_lab.py")
SIZE = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    codes, error = ends(start_team(SIZE, LAB, folder, *team_lab.CASES))
    assert codes == [0] * SIZE, error
    return lambda case: [torch.load(folder / f"{case}_{rank}.pt") for rank in range(SIZE)]


@pytest.mark.parametrize("case", list(team_lab.CASES))
def test_two_processes_come_to_the_result_of_one(found, case):
    alone, team = team_lab.solve(case), found(case)
    assert_alike(alone, team, 1e-5 if alone["volume"].dtype == torch.float32 else 1e-11)
    start_volume = 0.3 * team_lab.CASES[case][0]().volume.detach()
    assert not torch.allclose(alone["volume"], start_volume, rtol=1e-3), "nothing was solved"


def assert_alike(alone, team, rounding):
    """Every process has the result of one but for rounding, and all have the same."""
    for key, value in alone.items():
        assert all(torch.equal(team[0][key], other[key]) for other in team), (
            f"{key} differs between processes"
        )
        torch.testing.assert_close(team[0][key], value, rtol=0, atol=rounding * float(value.abs().max()))


def test_two_processes_refine_the_same_atoms_as_one(found):
    alone, team = team_lab.refine(), found("atoms")
    assert len(alone["sites"]) == len(alone["errors"]) == 6, "the missing atom was not found"
    assert alone["losses"][3] < 0.9 * alone["losses"][0], "nothing was refined"
    assert_alike(alone, team, 1e-8)


def test_each_thing_is_done_by_one_process_and_known_to_all(found):
    assert ALONE.each(3, str) == ["0", "1", "2"]
    for rank in range(SIZE):
        assert found("each")[rank].tolist() == [[i % SIZE, i] for i in range(5)]


@pytest.mark.parametrize(("count", "size"), [(7, 3), (4, 4), (100, 7)])
def test_shares_cover_everything_once_and_evenly(count, size):
    parts = [range(count)[Team(rank, size).share(count)] for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_portions_are_whole_but_for_the_last_kinds(size):
    counts = [5, 7, 6, 9, 2, 11, 8]
    dealt = [list(Team(rank, size).portions(counts)) for rank in range(size)]
    for kind, count in enumerate(counts):
        parts = [part for portions in dealt for k, part in portions if k == kind]
        assert sorted(i for part in parts for i in part) == list(range(count))
        assert all(parts)
        assert (len(parts) == 1) == (kind < len(counts) // size * size or count == 1)


def test_a_team_of_one_leaves_everything_as_it_is():
    tensor = torch.arange(6.0).view(2, 3)
    assert ALONE.slab(tensor, 1) is tensor
    assert ALONE.exchange(tensor, 2, 0, 1) is tensor
    assert ALONE.join(tensor, 3, 1) is tensor
    assert ALONE.gather("a") == ["a"]
    assert ALONE.from_main("b") == "b"
    assert not ALONE.any(False)


def test_more_processes_than_work_are_refused():
    make, options, loss = team_lab.CASES["batches"]
    with pytest.raises(UserError, match="start at most 7"):
        next(team_lab.reconstruct(make(), None, loss, options, team=Team(0, 8)))
