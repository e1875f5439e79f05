"""The page from one's own pictures to a served model and back is one session that runs."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

PAGE = Path(__file__).parents[2] / "docs" / "own-pictures.md"
LIMIT_SECONDS = 1800


def write_pictures(folder: Path) -> None:
    """Cut pictures of three textures: the upper halves are for training."""
    places = np.random.default_rng(0)
    for name in ("brick", "grass", "gravel"):
        photograph = Image.fromarray(getattr(data, name)()).convert("RGB")
        for part, top, count in (("pictures", 0, 24), ("unseen", 256, 8)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                x, y = places.integers(0, 384), top + places.integers(0, 128)
                crop = photograph.crop((x, y, x + 128, y + 128))
                crop.save(folder / part / name / f"{number:02}.png")


def test_the_session_runs(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    session = "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for address in ("127.0.0.1:50051", "127.0.0.1:9090"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            session = session.replace(address, f"127.0.0.1:{free.getsockname()[1]}")
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-meuo", "pipefail", "-c", f"trap 'kill %1 2>/dev/null || true' EXIT\n{session}"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "to keep them, start it with --version-labels textures:stable=2" in done.stderr
    served = set(re.findall(r'foveate_requests_total\{code="OK",.*version="(\d)"\}', done.stdout))
    assert served == {"1", "2"}
