"""Packaging. The dependencies are listed once, here; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

TEST = ["hypothesis>=6.100", "mypy>=1.10", "pytest>=8.0", "pytest-xdist>=3.5", "ruff>=0.6", "types-PyYAML"]
DOCS = ["furo>=2024.8", "myst-nb>=1.1", "sphinx>=7.4"]

setup(
    name="milkshake_mbp",
    version="0.1.0",
    description="Magnitude-based pruning of neural networks, with generalization bounds and certificates",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The milkshake_mbp authors",
    license="MIT",
    keywords=["pruning", "generalization bounds", "compression", "matrix sketching", "lottery tickets", "Lightning"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    project_urls={
        "Paper": "https://arxiv.org/abs/2305.18789",
        "Milkshake": "https://github.com/tmlabonte/milkshake",
    },
    python_requires=">=3.10",
    # Scripts, configurations, errata lie beside the package in a checkout, inside it once installed; see commands.py.
    packages=[
        *find_packages(include=["milkshake_mbp", "milkshake_mbp.*"]),
        *(f"milkshake_mbp.{name}" for name in ("cfgs", "docs", "exps")),
    ],
    package_dir={f"milkshake_mbp.{name}": name for name in ("cfgs", "docs", "exps")},
    package_data={
        "milkshake_mbp": ["py.typed", "reporting/report/page.html"],
        "milkshake_mbp.cfgs": ["*.yaml"],
        "milkshake_mbp.docs": ["errata.md"],
    },
    entry_points={"console_scripts": ["mbp = milkshake_mbp.commands:main"]},
    install_requires=[
        "docstring-parser>=0.15",
        "jsonargparse[signatures]>=4.35",
        "matplotlib>=3.7",
        "numpy>=1.26",
        "pillow>=9.0",
        "pytorch-lightning>=2.6",
        "pyyaml>=6.0",
        "rich>=13.5",
        "safetensors>=0.4.3",
        "scikit-learn>=1.3",
        "scipy>=1.11",
        "torch>=2.4",
        "torchmetrics>=1.0",
        "torchvision>=0.19",
        "wandb>=0.31",
    ],
    # For sweeps on a cluster; for ConvNeXt V2, BERT and weights for ImageNet-21k. All else does without.
    extras_require={"docs": DOCS, "ray": ["ray>=2.9"], "test": TEST, "transformers": ["transformers>=4.39"]},
)
