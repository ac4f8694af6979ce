"""Reads what an offline W&B run left: its log of protobuf records, in blocks of 32 KiB as LevelDB's logs are."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEAD = 32 * 1024, struct.Struct("<IHB")
FULL, LAST = 1, 4


def read_records(folder: Path) -> list[Record]:
    """Every record of the offline runs under `folder`, in order, earlier runs first."""
    files = sorted(folder.glob("offline-run-*/*.wandb"))
    assert files, f"no offline run in {folder}"
    return [record for file in files for record in _complete(file)]


def _complete(file: Path) -> list[Record]:
    """W&B's service writes behind: wait for the record that ends the run."""
    for _ in range(600):
        records = list(_records(file))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.05)
    raise AssertionError(f"{file} has no end: was the run finished?")


def _records(file: Path) -> Iterator[Record]:
    data = file.read_bytes()
    assert data[:4] == b":W&B", f"{file} is no W&B log"
    place, found = 7, b""
    while place < len(data):
        left = BLOCK - place % BLOCK
        if left < HEAD.size or place + HEAD.size > len(data):  # too little for another part: filled up
            place += left
            continue
        checksum, length, kind = HEAD.unpack_from(data, place)
        part = data[place + HEAD.size : place + HEAD.size + length]
        if len(part) < length:  # not all of it is written yet
            return
        assert zlib.crc32(part, zlib.crc32(bytes([kind]))) == checksum, f"{file} is broken at byte {place}"
        found, place = found + part, place + HEAD.size + length
        if kind in (FULL, LAST):
            yield Record.FromString(found)
            found = b""


def history(records: list[Record]) -> list[dict]:
    """What was logged, a dict for each call; nested keys are joined by dots."""
    rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def config(records: list[Record]) -> dict:
    """The run's settings after all updates; top-level keys as they were given."""
    found: dict = {}
    for record in records:
        kind = record.WhichOneof("record_type")
        updates = {"run": record.run.config.update, "config": record.config.update}.get(kind, ())
        for item in updates:
            found[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return found


def artifacts(records: list[Record]) -> list:
    """Those that were logged."""
    return [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
