"""The Dockerfile: which dependencies each image has, what it is built from, and its user."""

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

from tests.support.manifest_policies import USER
from tests.support.manifests import K8S

ROOT = K8S.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")


def test_training_has_all_dependencies_but_ray_and_opencv(tmp_path: Path) -> None:
    (script,) = re.findall(r"^RUN (.* > train\.txt .*)$", DOCKERFILE, re.MULTILINE)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True, timeout=30)
    every, training, preparation, torch = (
        (tmp_path / f"{name}.txt").read_text().splitlines() for name in ("all", "train", "prepare", "torch")
    )
    assert [re.split(r"[><=]", line)[0] for line in preparation] == ["opencv-python-headless", "ray[default]"]
    assert sorted([*training, *preparation]) == sorted(line.replace("ray>", "ray[default]>") for line in every)
    assert torch == [line for line in every if line.startswith("torch")]


def test_what_is_copied_is_not_ignored() -> None:
    *_, allowed = (ROOT / ".dockerignore").read_text().partition("*\n")
    patterns = re.findall(r"^!(.+)$", allowed, re.MULTILINE)
    copied = [file for line in re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE, re.MULTILINE) for file in line.split()]
    assert "psys" in copied
    assert {file for file in copied if not any(fnmatch(file, pattern) for pattern in patterns)} == set()
    assert all((ROOT / file).exists() for file in copied)


def test_both_images_run_as_the_user_of_the_manifests() -> None:
    stages = re.split(r"^FROM .* AS ", DOCKERFILE, flags=re.MULTILINE)[1:]
    users = {stage.split()[0]: re.findall(r"^USER (\S+)", stage, re.MULTILINE) for stage in stages}
    assert users["train"] == users["prepare"] == [f"{USER}:{USER}"]
    assert stages[-1].startswith("train")  # what is built where no target is named
