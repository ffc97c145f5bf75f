"""Links of the pages lead to files of the repository, and to headings that are there."""

import pytest
from pages import PAGES, anchors, blocks, links, read, why_broken


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = read(page)
    wrong = {link: why for link in links(text) if (why := why_broken(page, text, link))}
    assert wrong == {}


def test_the_pages_have_links_to_check() -> None:
    found = [link for page in PAGES for link in links(read(page))]
    assert len(found) > 50
    assert any("#" in link for link in found)
    assert any(link.startswith("../") for link in found)


@pytest.mark.parametrize(
    "link",
    [
        "missing.md",
        "../missing.json",
        "../build/site",
        "choosing.md#no-such-heading",
        "#no-such-heading",
        "../README.md#no-such-heading",
        "../LICENSE#heading",
        "../../outside.md",
    ],
)
def test_the_check_sees_a_broken_link(link: str) -> None:
    assert why_broken("docs/tuning.md", read("docs/tuning.md"), link)


@pytest.mark.parametrize(
    "link", ["choosing.md", "../vtfast/methods", "../README.md#install", "#the-rule", "tuned.png"]
)
def test_the_check_takes_a_good_link(link: str) -> None:
    assert not why_broken("docs/tuning.md", read("docs/tuning.md"), link)


def test_links_are_found_in_every_form() -> None:
    text = '[a](b.md) ![c](<d.png> "e")\n[f]: g.md\n<img src="h.svg">\n[i](https://j.k) `[l](m)`\n'
    assert links(text) == ["b.md", "d.png", "g.md", "h.svg"]
    assert links("```\n[a](b.md)\n```\n") == []


def test_anchors_are_those_of_a_code_host() -> None:
    text = "# A `b`: c, d-e\n## Twice\n### Twice\n```\n# no heading\n```\n## [f](g.md) h?\n"
    assert anchors(text) == {"a-b-c-d-e", "twice", "twice-1", "f-h"}


@pytest.mark.parametrize("text", ["```\nopen\n", "- item\n  ```\n  code\n  ```\n", "~~~\na\n~~~\n"])
def test_a_block_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="fences"):
        blocks(text)
