"""The last stage's commands, run on Debian: no container engine is needed for a root file system and a chroot."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.test_cluster_files import stages

MIRROR = "http://deb.debian.org/debian"
RELEASE = "bookworm"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and chroot need root"),
    pytest.mark.skipif(
        not shutil.which("debootstrap"), reason="debootstrap is not installed (Debian: apt-get install)"
    ),
]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A minimal Debian, as below the Python image that the Dockerfile starts from."""
    folder = tmp_path / "root"
    command = ["debootstrap", "--variant=minbase", RELEASE, str(folder), MIRROR]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    shutil.copy("/etc/resolv.conf", folder / "etc")
    yield folder
    # debootstrap may leave these mounted
    subprocess.run(["umount", "-q", "-l", folder / "proc", folder / "sys"], check=False)
    shutil.rmtree(folder)


def test_the_last_stage_on_debian(root: Path) -> None:
    """Its packages exist, its user can write where it should and nowhere else, login shells find the environment."""

    def inside(command: str, *options: str) -> subprocess.CompletedProcess[str]:
        clean = {
            "HOME": "/home/consistory",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        arguments = ["chroot", *options, str(root), "/bin/bash", "-o", "pipefail", "-c", command]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=clean)

    def as_user(command: str) -> subprocess.CompletedProcess[str]:
        return inside(command, "--userspec=1000:1000", "--groups=")

    pip = root / "usr" / "local" / "bin" / "pip"  # comes with the Python image; here it only notes what is asked of it
    pip.write_text('#!/bin/sh\necho "$@" > /pip-was-asked\n')
    pip.chmod(0o755)
    (run,) = [arguments for name, arguments in stages()["runtime"] if name == "RUN"]
    done = inside(run)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (root / "pip-was-asked").read_text().split() == [
        "uninstall",
        "--yes",
        "--quiet",
        "pip",
        "setuptools",
        "wheel",
    ]
    assert not list((root / "var/lib/apt/lists").iterdir()), "package lists stay in the layer"

    assert as_user("id -un; id -u").stdout.split() == ["consistory", "1000"]
    assert as_user("bash -lc 'echo $PATH'").stdout.startswith("/opt/venv/bin:"), "login shells forget the environment"
    assert as_user("openssl version && wget --version").returncode == 0
    for folder in ("/models", "/opt/models", "/output", "/home/consistory"):
        assert as_user(f"touch {folder}/something").returncode == 0, folder
    for folder in ("/", "/opt", "/usr/local/bin", "/etc/profile.d"):
        assert as_user(f"touch {folder}/something").returncode != 0, folder
    assert as_user("command -v gcc cc make git").stdout == ""

    assert as_user("command -v ssh rsync tmux").stdout == ""
    (run,) = [arguments for name, arguments in stages()["ray-up"] if name == "RUN"]
    done = inside(run)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert not list((root / "var/lib/apt/lists").iterdir()), "package lists stay in the layer"
    # What Ray's launcher calls in a container; tmux needs terminals to do more, which this root does not have.
    assert as_user("ssh -V && rsync --version && tmux -V").returncode == 0
    copied = as_user("cd && echo job >job && rsync -avz job copy && cat copy")
    assert copied.stdout.endswith("job\n"), copied.stderr
