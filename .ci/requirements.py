"""Print what pip must install to build, test and run this checkout, one requirement a line.

The lists stand in pyproject.toml. The nvcc wheels are left out where there is another nvcc or where
the kernels are prebuilt.
"""

import os
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "csrc"))

from kernel_build import toolkit  # noqa: E402
from kernel_build.errors import BuildError  # noqa: E402


def needs_nvcc_wheels() -> bool:
    """Say whether only the wheels can provide nvcc."""
    if os.environ.get("PYKERNELS_KERNELS_DIR"):
        return False
    try:
        nvcc = toolkit.find_nvcc()
    except BuildError:
        return True
    return "site-packages" in nvcc.parts


def main() -> None:
    """Print the requirements."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["demo"], *extras["test"], *extras["lint"]]
    for requirement in settings["build-system"]["requires"]:
        if not requirement.startswith("nvidia-") or needs_nvcc_wheels():
            requirements.append(requirement)
    own = project["name"] + "["
    print(*(line for line in requirements if not line.startswith(own)), sep="\n")


if __name__ == "__main__":
    main()
