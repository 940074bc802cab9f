"""Package metadata from settings.ini; the kernels travel in the wheel as flashmoe_nb.kernels."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

KERNELS = "flashmoe_nb.kernels"
folders = [folder.relative_to(ROOT) for folder in sorted((ROOT / "kernels").rglob("*")) if folder.is_dir()]
kernel_packages = [KERNELS] + [".".join([KERNELS, *folder.parts[1:]]) for folder in folders if folder.name[0] not in "_."]
extras = {
    key.removesuffix("_requirements"): value.split()
    for key, value in settings.items()
    if key.endswith("_requirements")
}

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    keywords=settings["keywords"].split(),
    url=settings["git_url"],
    project_urls={"Documentation": settings["doc_host"] + settings["doc_baseurl"]},
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: {version}" for version in ("3", "3.11", "3.12", "3.13")),
        "Environment :: GPU :: NVIDIA CUDA :: 12",
    ],
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    packages=find_packages(include=["flashmoe_nb", "flashmoe_nb.*"]) + ["flashmoe_nb.tuned"] + kernel_packages,
    package_dir={KERNELS: "kernels"},
    package_data={"flashmoe_nb.tuned": ["*.json"], **{p: ["*.cu", "*.cuh", "*.h", "*.cpp"] for p in kernel_packages}},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
