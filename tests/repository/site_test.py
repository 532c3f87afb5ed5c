"""The site that MkDocs builds: links between its files and those of the repository."""

import types
from typing import Any

import pytest

from tools import mkdocs_hooks


@pytest.mark.parametrize(
    ("page", "link", "moved"),
    [
        ("paper.md", "../results/a/b.png", "results/a/b.png"),
        ("paper.md", "../configs/digits.py", "configs/digits.py"),
        ("paper.md", "cifar10.md#anchor", "cifar10.md#anchor"),
        ("api/nets.md", "../architecture.md", "../architecture.md"),
        ("api/nets.md", "../../results/a.png", "../results/a.png"),
        ("results/README.md", "../docs/paper.md", "../paper.md"),
        ("results/README.md", "digits/eval.csv", "digits/eval.csv"),
        ("paper.md", "#anchor", "#anchor"),
        ("paper.md", "https://arxiv.org/abs/1901.04687", "https://arxiv.org/abs/1901.04687"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(page: str, link: str, moved: str):
    at: Any = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=page))
    said = mkdocs_hooks.on_page_markdown(f"See [it]({link}) and ![it]({link}).", page=at)
    assert said == f"See [it]({moved}) and ![it]({moved})."
