"""benchmarks/RESULTS.md and the names of result files."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure
from benchmarks.measure import RESULTS, machine, read_parts, write
from benchmarks.report import TARGET, load, render, typed

RECORD: dict[str, Any] = {
    "processor": "AMD EPYC",
    "microarchitecture": "zen5",
    "machine": "x86_64",
    "cores": 2,
    "memory_bytes": 24 * 2**30,
    "packages": {"torch": "2.13.0"},
    "python": "3.11.7",
    "started": "2026-11-28T06:00:00+0000",
    "commit": "0123456789abcdef-dirty",
    "command": ["python", "-m", "benchmarks.decisions", "--out", "somewhere.json"],
}


def test_results_md_is_up_to_date_and_short() -> None:
    text = TARGET.read_text(encoding="utf-8")
    assert text == render(load(RESULTS)), "run python -m benchmarks.report"
    assert len(text.splitlines()) <= 120


def test_every_result_file_has_its_environment_and_lies_in_the_folder_of_its_machine() -> None:
    for name, benchmarks in load(RESULTS).items():
        for benchmark, content in benchmarks.items():
            for part in content.get("parts", {"": content}).values():
                assert machine(part["environment"]) == name, benchmark
                assert part["environment"]["commit"]


def test_decision_times_are_reported_with_the_ratio_of_4096_to_8_workers() -> None:
    medians = {"sync": {"8": 20.0, "4096": 50.0}, "async": {"8": 10.0, "4096": 50.0}}
    modes = {mode: {n: {"median_us": each} for n, each in sizes.items()} for mode, sizes in medians.items()}
    text = render({"amd-epyc-zen5-2c": {"decisions": {"environment": RECORD, "modes": modes}}})
    assert "| at most 4 | sync 2.50 / **async 5.00** |" in text
    assert "median microseconds at 8, 4,096 workers; sync: 20, 50; async: 10, 50" in text
    assert "[0123456-dirty](results/amd-epyc-zen5-2c/decisions.json)" in text
    assert "## throughput" not in text


def test_report_of_no_results_has_no_tables_of_benchmarks() -> None:
    assert "##" not in render({}).replace("## Machines", "")


@pytest.mark.parametrize(
    ("processor", "microarchitecture", "name"),
    [
        ("Intel(R) Xeon(R) Processor", "amx", "intel-xeon-amx-2c"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "amx", "intel-xeon-platinum-8481c-amx-2c"),
        ("AMD EPYC 9B45 128-Core Processor", "zen5", "amd-epyc-9b45-zen5-2c"),
        ("", "", "x86-64-2c"),
    ],
)
def test_machine_name_is_made_of_processor_microarchitecture_and_cores(
    processor: str, microarchitecture: str, name: str
) -> None:
    assert machine({**RECORD, "processor": processor, "microarchitecture": microarchitecture}) == name


def test_commands_are_shown_without_output_file_and_seed() -> None:
    assert typed(["python", "launch/ps.py", "--mode", "async", "--seed", "0"]) == "python launch/ps.py --mode async"
    assert typed(RECORD["command"]) == "python -m benchmarks.decisions"


def test_writing_a_part_keeps_the_other_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "environment", lambda: RECORD)
    path = tmp_path / "machine" / "wire.json"
    write(path, {"rounds": 1}, part="fp32")
    write(path, {"rounds": 2}, part="bf16")
    write(path, {"rounds": 3}, part="fp32")
    assert {name: part["rounds"] for name, part in read_parts(path).items()} == {"fp32": 3, "bf16": 2}
    write(path, {"rounds": 4})
    assert json.loads(path.read_text()) == {"environment": RECORD, "rounds": 4}
