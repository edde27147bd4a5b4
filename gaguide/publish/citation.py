"""The study that the method is from, and this software, as CITATION.cff has them."""

from __future__ import annotations

from typing import Any

PAPER_URL = (
    "https://github.com/pranavh4/CSE_576_attention_guidance/blob/"
    "dfc2b92c3bfe5e53db53d9556233e8278915cf69/Attention_Guidance_Inverse_Scaling.pdf"
)
PAPER_TITLE = "Transformer Augmentations for the Inverse Scaling Problem"
PAPER_AUTHORS = (("Pranav", "Hegde"), ("Satyanarayana", "Mulagala"), ("Shaili", "Shah"), ("Shuchi", "Talati"))
"""(given name, family name)."""
PAPER_INSTITUTION, PAPER_YEAR = "Arizona State University", 2023
SOFTWARE_LICENSE = "https://spdx.org/licenses/Apache-2.0"
METHOD_DOI = "10.18653/v1/2020.findings-emnlp.419"
"""A. Deshpande and K. Narasimhan, Guiding Attention for Self-Supervised Learning with Transformers."""


def paper_citation() -> str:
    """The study in one line of Markdown."""
    *names, last = (f"{given[0]}. {family}" for given, family in PAPER_AUTHORS)
    authors = f"{', '.join(names)} and {last}"
    return f"{authors}, [*{PAPER_TITLE}*]({PAPER_URL}), {PAPER_INSTITUTION}, {PAPER_YEAR}"


def paper_entities() -> list[dict[str, Any]]:
    """The study as entities of an RO-Crate: the work, then its authors and their institution."""
    place = "#arizona-state-university"
    people = [
        {"@id": f"#{given}-{family}".lower(), "@type": "Person", "name": f"{given} {family}",
         "givenName": given, "familyName": family, "affiliation": {"@id": place}}
        for given, family in PAPER_AUTHORS
    ]  # fmt: skip
    work = {
        "@id": PAPER_URL,
        "@type": "ScholarlyArticle",
        "name": PAPER_TITLE,
        "author": [{"@id": each["@id"]} for each in people],
        "datePublished": str(PAPER_YEAR),
        "citation": {"@id": doi_url(METHOD_DOI)},
    }
    method = {
        "@id": doi_url(METHOD_DOI),
        "@type": "ScholarlyArticle",
        "name": "Guiding Attention for Self-Supervised Learning with Transformers",
        "identifier": doi_url(METHOD_DOI),
    }
    return [work, *people, {"@id": place, "@type": "Organization", "name": PAPER_INSTITUTION}, method]


def doi_url(doi: str) -> str:
    """The address of a DOI."""
    return f"https://doi.org/{doi}"
