"""A bare loop takes turns in a block, and leaves a record that can be paired with a trial's."""

from pathlib import Path

import psutil
import pytest

from scalebench_lib.config import Config, Trial
from scalebench_lib.errors import MeasurementError
from scalebench_lib.record import Record, load_records
from scalebench_lib.sweep.block import Block
from scalebench_lib.validation.bare_loop import BareLoop
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

TINY = Config(model="bert-tiny", optimization="script")


@pytest.fixture
def loop(tmp_path: Path):
    """Set up, standing still."""
    made = BareLoop(Trial(config=TINY, threads=(1,), block="0000000b"), tmp_path)
    yield made
    made.kill()


def test_it_stands_still_between_its_turns(loop: BareLoop) -> None:
    """As all members of a block do."""
    process = psutil.Process(loop.pid)
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    answer = loop.turn(1, 1, 0.02)
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    assert answer.median_ns > 0
    assert answer.spent_s >= 0.02


def test_its_record_has_the_turns_that_it_took(loop: BareLoop, tmp_path: Path) -> None:
    """Of the block and cycles in which it took them."""
    block = Block("0000000b")
    block.add(loop, "group")
    block.take_cycle()
    block.take_cycle()
    assert [type(found) for _, found in block.end()] == [Record]
    (record,) = load_records(tmp_path)
    assert record.block == "0000000b"
    assert [turn.cycle for turn in record.points[0].turns] == [1, 2]
    assert not psutil.pid_exists(loop.pid)


def test_one_that_dies_says_so(loop: BareLoop) -> None:
    """It is no number."""
    psutil.Process(loop.pid).kill()
    with pytest.raises(MeasurementError, match="the bare loop ended with code -9"):
        loop.turn(1, 1, 0.02)
