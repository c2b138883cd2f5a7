"""PEFT's own tests, with `PacaConfig` in the place of its methods.

    python tests/peft_own/run.py                           all that say something about PaCA, two at a time
    python tests/peft_own/run.py -n 4 -k fsdp              what is no option of this is passed on to pytest
    python tests/peft_own/run.py --tests peft/tests        those of a folder, of a copy of PEFT's repository, say

The tests are those of the installed version of PEFT, from its source package, which pip fetches. None of their text is
kept here; `substitution.py` says what is put into them, and which are left out and why. Their models are made with
random weights (`hub.py`); nothing asks the Hub.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from hub import make_models

FILES = (
    *("custom_models", "decoder_models", "encoder_decoder_models", "feature_extraction_models", "seq_classifier"),
    *("token_classification_qa", "target_parameters", "config", "integrations", "lora_conversion", "low_level_api"),
    *("other", "tuners_utils", "initialization", "quantization"),
)
# What PEFT's tests import and this package does not need; of diffusers' own requirements, the missing ones.
LIBRARIES = ("diffusers", "parameterized", "importlib_metadata", "zipp")


def main() -> int:
    """Fetch what is missing, run the tests, and return pytest's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, help="a folder with PEFT's tests; by default the source package's")
    parser.add_argument("--work", type=Path, default=Path("build/peft_own"), help="where everything is put")
    parser.add_argument("-n", dest="workers", type=int, default=2, help="how many tests run at once")
    arguments, others = parser.parse_known_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    copy_tests(arguments.tests or fetched_tests(work), work / "tests")
    libraries = fetched_libraries(work)
    make_models(work / "hub")
    paths = [str(Path(__file__).parent), str(libraries), os.environ.get("PYTHONPATH", "")]
    options = ["-q", "-rfE", "--tb=short", "--rootdir", ".", "-p", "no:cacheprovider", "-n", str(arguments.workers)]
    files = [f"tests/test_{name}.py" for name in FILES]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "substitution", *options, *files, *others],
        cwd=work,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(work / "hub"),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        check=False,
    ).returncode


def fetched_tests(work: Path) -> Path:
    """The tests in the source package of the installed PEFT."""
    version = importlib.metadata.version("peft")
    archive = work / f"peft-{version}.tar.gz"
    if not archive.exists():
        pip("download", "--no-deps", "--no-binary", "peft", "--dest", str(work), f"peft=={version}")
    with tarfile.open(archive) as package:
        package.extractall(work, filter="data")
    tests = work / f"peft-{version}" / "tests"
    if not tests.is_dir():
        sys.exit(f"{archive} holds no tests. Pass --tests with the folder of PEFT's repository at v{version}.")
    return tests


def copy_tests(source: Path, target: Path) -> None:
    """Put the tests where they are a package of their own, without what configures PEFT's own runs."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in source.glob("test*.py"):
        shutil.copy(file, target)
    (target / "__init__.py").touch()


def fetched_libraries(work: Path) -> Path:
    """A folder with `LIBRARIES`, beside the environment and not in it."""
    folder = work / "libraries"
    if not folder.exists():
        pip("install", "--no-deps", "--target", str(folder), *LIBRARIES)
    return folder


def pip(*arguments: str) -> None:
    """Run pip, and end with its message where that fails."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"pip {' '.join(arguments)} failed.")


if __name__ == "__main__":
    sys.exit(main())
