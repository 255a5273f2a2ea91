"""Damaged and crafted config files: each is read or rejected with one clear error."""

from pathlib import Path
from random import Random

import pytest
import yaml

from psys.config import read_yaml, validate
from psys.errors import PsysError
from psys.training import TrainingConfig
from tests.support.mutations import count_rejected, damaged, with_changed_node
from tests.support.processes import ROOT

pytestmark = pytest.mark.timeout(60)


def read_config(path: Path) -> TrainingConfig:
    return validate(TrainingConfig, read_yaml(path), str(path))


def test_damaged_configs_are_read_or_rejected(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    valid = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]

    def change_bytes(random: Random) -> None:
        file.write_bytes(damaged(random.choice(valid), random))
        read_config(file)

    def change_types(random: Random) -> None:
        file.write_text(yaml.dump(with_changed_node(yaml.safe_load(random.choice(valid)), random), Dumper=NoAliases))
        read_config(file)

    assert count_rejected(150, 1, change_bytes, file) > 100
    assert count_rejected(150, 2, change_types, file) > 100


class NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n" + "epochs: *b", "c.yaml is not YAML: settings have no aliases"),
        ("epochs: &a [*a]", "settings have no aliases"),
        ("<<: &a {epochs: 3}\nschedule: {<<: *a}", "settings have no aliases"),
        ("epochs: " + "[" * 3_000, "is not YAML: maximum recursion depth"),
        ("a: " * 500 + "1", "is not YAML: mapping values are not allowed"),
        ("epochs: 0x" + "f" * 60_000, "an integer has at most 64 bits"),
        ("epochs: 1" + ":10" * 20_000, "an integer has at most 64 bits"),
        ("epochs: " + "9" * 60_000, "is not YAML"),
        ("epochs: !!bool x", "is not YAML"),
        ("epochs: !!timestamp x", "is not YAML"),
        ('epochs: !!int ""', "is not YAML"),
        ("epochs: 2024-13-45", "is not YAML"),
        ("name: !!python/name:os.system", "is not YAML"),
        ("source: x\n" * 7000, "cannot read config .*c.yaml: more than 65,536 bytes"),
        ("source: {" + "?" * 60_000, "c.yaml"),
        ("[1, 2]: 3", "is not YAML.*unhashable key"),
        ("1: 2", "setting '1': Keys should be strings"),
        ("schedule: {learning_rate: .nan}", "'schedule.*finite"),
        (f"schedule: {{table: {[['x', 'y']] * 3000}}}", "^(?s:.{,5000})$"),
        (f"source: [{'x' * 60_000}]", r"'source': Input should be a valid string, got \['x{198}\.\.\. \(in"),
    ],
    ids=lambda text: text[:30],
)
def test_crafted_config_is_rejected_with_one_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(PsysError, match=message):
        read_config(tmp_path / "c.yaml")
