"""The reader of `.wandb` files, against files that W&B itself wrote."""

import struct
from pathlib import Path
from typing import Any

import pytest

from adamwprune.trackers.wandb_files import (
    StoredAlert,
    fragments,
    is_offline,
    is_synced,
    mark_synced,
    mend,
    parse_run,
    read_payloads,
    read_run,
)
from tests.helpers.wandb_runs import wandb_process  # noqa: F401

pytest.importorskip("wandb")


@pytest.fixture(scope="module")
def wandb_file(tmp_path_factory: pytest.TempPathFactory, wandb_process: Any) -> Path:  # noqa: F811
    """Record a run of several 32 KiB blocks, as another program would."""
    directory = tmp_path_factory.mktemp("reader")
    run = wandb_process.init(
        dir=str(directory),
        project="p",
        group="g",
        tags=["a", "b"],
        notes="what for",
        config={"lr": 0.1},
        reinit="create_new",
        settings=wandb_process.Settings(mode="offline", console="off", silent=True, x_disable_stats=True),
    )
    for step in range(400):
        run.log({f"metric-{step % 7}/value": step / 3, "text": "x" * 200, "nested": {"a": {"b": step}}})
    run.alert("title", "text", level="WARN")
    run.config.update({"later": 3})
    run.finish(exit_code=3)
    (file,) = fragments(directory)
    assert read_run(file.parent).exit_code == 3
    return file


def test_all_that_a_file_holds(wandb_file: Path) -> None:
    """Names as they were given, of nested values joined by dots; who the run is and how it ended."""
    stored = parse_run(wandb_file)
    assert [row["nested.a.b"] for row in stored.rows] == list(range(400))
    assert stored.summary["metric-0/value"] == 399 // 7 * 7 / 3
    assert (stored.config["lr"], stored.config["later"]) == (0.1, 3)
    assert (stored.run.project, stored.run.run_group, stored.run.notes) == ("p", "g", "what for")
    assert list(stored.run.tags) == ["a", "b"]
    assert stored.alerts == [StoredAlert("WARN", "title", "text")]
    assert (stored.exit_code, stored.is_preempting) == (3, False)
    assert stored.series == []  # no row has a step of ours


def test_records_across_blocks_are_joined(wandb_file: Path) -> None:
    """W&B's own numbering confirms that none is missing."""
    stored = parse_run(wandb_file)
    assert wandb_file.stat().st_size > 3 * 32 * 1024
    assert [row["_step"] for row in stored.rows] == list(range(400))
    assert [row[f"metric-{step % 7}/value"] for step, row in enumerate(stored.rows)] == [
        s / 3 for s in range(400)
    ]


def test_a_torn_tail_ends_the_reading(tmp_path: Path, wandb_file: Path) -> None:
    """The control: a file cut at any of many places, its head included, yields a prefix of its records,
    and no exit code."""
    data = wandb_file.read_bytes()
    records = list(read_payloads(wandb_file))
    torn = tmp_path / "torn.wandb"
    for cut in (*range(8), *range(8, len(data), 4999)):
        torn.write_bytes(data[:cut])
        found = list(read_payloads(torn))
        assert found == records[: len(found)]
        assert parse_run(torn).exit_code is None


def test_damage_is_noticed(tmp_path: Path, wandb_file: Path) -> None:
    """The control: one flipped bit ends the reading there; another kind of file is refused."""
    data = bytearray(wandb_file.read_bytes())
    (length,) = struct.unpack_from("<H", data, 11)
    data[7 + 7 + length + 7] ^= 1  # the first byte of the second record's data
    damaged = tmp_path / "damaged.wandb"
    damaged.write_bytes(data)
    assert len(list(read_payloads(damaged))) == 1
    for other in (b"SQLite format 3", b"SQL", b"?"):
        damaged.write_bytes(other)
        with pytest.raises(ValueError, match=r"not a \.wandb file"):
            list(read_payloads(damaged))


def test_mending_cuts_the_torn_record_off(tmp_path: Path, wandb_file: Path) -> None:
    """And no other: the records are the same as before, no byte follows them, a second time does nothing.
    Where no run is left the file is marked; a whole file stays as it is."""
    data = wandb_file.read_bytes()
    torn = tmp_path / "run-x.wandb"
    for cut in (0, 5, 40, *range(300, len(data), 29989), len(data)):
        torn.write_bytes(data[:cut])
        records, has_run = list(read_payloads(torn)), parse_run(torn).run is not None
        for _ in range(2):
            mend(torn)
            assert list(read_payloads(torn)) == records
        assert is_synced(torn) != has_run
        torn.with_suffix(".wandb.synced").unlink(missing_ok=True)
        mended = torn.read_bytes()
        assert mended == data[: len(mended)]
        with torn.open("ab") as file:
            file.write(data[len(mended) :])
        assert list(read_payloads(torn)) == list(read_payloads(wandb_file)), "cut between two records"
    assert mended == data


def test_fragments_come_in_the_order_of_their_starts(tmp_path: Path) -> None:
    """Online or not, several of one second, those of one id or of all, no link twice."""
    names = (
        "run-20261124_101500-abc",
        "offline-run-20261124_115959-abc",
        "run-20261124_120000-abc",
        "run-20261124_120000-abc-1",
        "run-20261124_120000-abc-2",
        "run-20261124_120000-abc-10",
        "offline-run-20261124_120000-abc",
        "offline-run-20261124_130000-abc-r1",
        "run-20261125_090000-abc-r1",
    )
    made = []
    for name in names:
        run_id = "abc-r1" if name.endswith("-r1") else "abc"
        made.append(tmp_path / "wandb" / name / f"run-{run_id}.wandb")
        made[-1].parent.mkdir(parents=True)
        made[-1].touch()
    (tmp_path / "wandb" / "latest-run").symlink_to(made[0].parent)
    (tmp_path / "wandb" / "run-20261124_120001-abc" / "logs").mkdir(parents=True)  # a start that failed
    assert fragments(tmp_path) == made
    assert fragments(tmp_path, "abc") == made[:7]
    assert fragments(tmp_path, "abc-r1") == made[7:]
    assert fragments(tmp_path, "ab") == fragments(tmp_path / "nowhere") == []
    assert [file for file in made if is_offline(file)] == [made[1], made[6], made[7]]


def test_the_mark_is_that_of_wandb_sync(tmp_path: Path) -> None:
    """As W&B's own command asks for it."""
    from wandb.cli import beta_sync

    file = tmp_path / "run-abc.wandb"
    file.touch()
    assert not is_synced(file)
    assert not beta_sync._is_synced(file)
    mark_synced(file)
    assert is_synced(file)
    assert beta_sync._is_synced(file)
