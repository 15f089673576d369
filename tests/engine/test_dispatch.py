from __future__ import annotations

import pytest

from prism_fast.engine import dispatch
from prism_fast.engine.dispatch import Dispatch
from prism_fast.engine.outcome import Outcome
from prism_fast.errors import UserError
from prism_fast.synthesis.filter_config import NOT_FINITE
from prism_fast.synthesis.interruption import Interrupted, StopRequest
from prism_fast.synthesis.tally import Tally
from prism_fast.synthesis.work import Work
from tests.engine.runs import Count

ROWS = 10


def done(shard: int, images: int = ROWS) -> Outcome:
    rejected = {NOT_FINITE: ROWS - images} if images < ROWS else {}
    stats = {"shard": shard, "rows": ROWS, "images": images, "guidances": 0, "skipped": 0, "rejected": rejected}
    return Outcome(kind="done", stats=stats)


def work(shards: int) -> Work:
    def never(*_: object) -> None:
        raise AssertionError

    return Work(
        shards=range(shards), here=never, elsewhere=never, let_go=never, device="cpu", threads=1,  # type: ignore[arg-type]
        stop=StopRequest(), bar=Count(), tally=Tally(1.0),
    )  # fmt: skip


def rows(given: Work) -> int:
    assert isinstance(given.bar, Count)
    return given.bar.rows


def test_shards_go_to_who_asks_and_the_bar_says_the_truth() -> None:
    given = work(3)
    desk = Dispatch(given)
    assert [desk.give(0), desk.give(1)] == [0, 1]
    desk.rows(0, 4)
    desk.ended(0, done(0))
    assert (rows(given), desk.give(0)) == (10, 2)
    desk.rows(1, 7)
    desk.lost(1, "by SIGKILL")  # its rows are not there
    assert rows(given) == 10
    desk.ended(0, done(2))
    assert desk.waiting and desk.give(5) == 1
    desk.rows(1, 3)  # late news of a worker that is gone
    desk.ended(5, done(1))
    assert rows(given) == 30 and not desk.waiting and not desk.held
    desk.close()
    assert sorted(given.tally.shards) == [0, 1, 2]


def test_a_shard_of_another_run_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: now[0])
    desk = Dispatch(work(2))
    assert desk.give(0) == 0
    desk.ended(0, Outcome(kind="busy"))
    assert desk.give(0) == 1
    assert desk.give(1) is None and desk.waiting
    now[0] += dispatch.BUSY_WAIT_S
    assert desk.give(1) == 0


def test_losses_over_one_shard_end_the_run() -> None:
    desk = Dispatch(work(2))
    for worker in range(dispatch.MAX_LOSSES):
        assert desk.stopping is None
        assert desk.give(worker) == 0
        desk.lost(worker, "by SIGKILL")
    assert desk.give(9) is None
    with pytest.raises(UserError, match="3 workers were lost at shard 0, the last one by SIGKILL"):
        desk.close()


def test_losses_over_many_shards_do_not() -> None:
    desk = Dispatch(work(20))
    for shard in range(20):
        desk.give(2 * shard)
        desk.lost(2 * shard, "by SIGKILL")
        assert desk.give(2 * shard + 1) == shard
        desk.ended(2 * shard + 1, done(shard))
    desk.close()


def test_a_stop_leaves_the_rest() -> None:
    given = work(3)
    desk = Dispatch(given)
    desk.give(0)
    given.stop.reason = "SIGTERM"
    assert desk.give(1) is None
    desk.ended(0, Outcome(kind="stopped"))
    with pytest.raises(Interrupted, match="SIGTERM"):
        desk.close()


def test_a_set_that_does_not_work_stops_the_others() -> None:
    desk = Dispatch(work(5))
    desk.give(0)
    desk.give(1)
    desk.ended(0, done(0, images=ROWS // 2))
    assert desk.stopping and desk.give(0) is None
    desk.ended(1, Outcome(kind="refused", text="another reason"))
    with pytest.raises(UserError, match="not finite"):
        desk.close()
