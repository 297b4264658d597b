"""What continuous integration installs of the machine's packages, by the names that they have there."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def program(folder: Path, name: str, script: str) -> None:
    """A program of that name which does no more than this."""
    (folder / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("driver, browser", [("chromium-driver", "chromium"),
                                             ("chromium-chromedriver", "chromium-browser")])
def test_the_browsers_packages_have_the_names_of_the_distribution(tmp_path, driver, browser):
    """Where no chromedriver is found; apt knows one of the two names."""
    program(tmp_path, "apt-get", 'echo "$@" >> "$LOG"')
    program(tmp_path, "apt-cache", f'[[ "$2" = {driver} ]]')
    program(tmp_path, "make", ":")
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    environment = {**os.environ, "PATH": str(tmp_path), "LOG": str(tmp_path / "log")}
    ran = subprocess.run([tmp_path / "bash", ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    update, install = (tmp_path / "log").read_text().splitlines()
    assert update.startswith("update") and {driver, browser} < set(install.split())
