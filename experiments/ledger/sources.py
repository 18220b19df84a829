"""The sources of claims: notes, sections of the paper, and later work, with their addresses.

This is the only table of sources that pages link to. The addresses of the notes are not known, so
they are shown by title.
"""

from typing import NamedTuple

from experiments.stats.rules import Claim

PAPER = "https://arxiv.org/abs/1502.03167"
# The paper as HTML, with anchors for its sections: S3, S3.SS1, S4.SS2.SSS1.
PAPER_AS_PAGE = "https://arxiv.org/html/1502.03167v3"


class Source(NamedTuple):
    """A source of claims.

    - label: short name.
    - title: title given by its authors.
    - address: URL; empty if none is known.
    """

    label: str
    title: str
    address: str = ""


class Citation(NamedTuple):
    """A claim's reference to a source: the key of its kind in `SOURCES`, and the source itself."""

    key: str
    source: Source


SOURCES = {
    "000": Source("note 000", "Gradient Vanishing / Exploding 문제"),
    "001": Source("note 001", "Batch Normalization의 활용성 (공부한 자료 정리)"),
    "002": Source("note 002", "Batch Normalization"),
    "003": Source("note 003", "Vanishing/Exploding gradient (a summary)"),
    "004": Source("note 004", "Batch"),
    "paper": Source(
        "the paper",
        "Ioffe, Szegedy, Batch Normalization: Accelerating Deep Network Training by Reducing "
        "Internal Covariate Shift, 2015",
        PAPER,
    ),
    "later": Source("later work", "What others found since; named where one work is meant"),
}
LATER = {
    "ba": Source("Ba et al., 2016", "Layer Normalization", "https://arxiv.org/abs/1607.06450"),
    "bjorck": Source(
        "Bjorck et al., 2018",
        "Understanding Batch Normalization",
        "https://arxiv.org/abs/1806.02375",
    ),
    "gitman": Source(
        "Gitman & Ginsburg, 2017",
        "Comparison of Batch Normalization and Weight Normalization Algorithms for the Large-scale "
        "Image Classification",
        "https://arxiv.org/abs/1709.08145",
    ),
    "hoffer": Source(
        "Hoffer et al., 2017",
        "Train longer, generalize better: closing the generalization gap in large batch training "
        "of neural networks",
        "https://arxiv.org/abs/1705.08741",
    ),
    "ioffe": Source(
        "Ioffe, 2017",
        "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
        "https://arxiv.org/abs/1702.03275",
    ),
    "kalamkar": Source(
        "Kalamkar et al., 2019",
        "A Study of BFLOAT16 for Deep Learning Training",
        "https://arxiv.org/abs/1905.12322",
    ),
    "li": Source(
        "Li et al., 2016",
        "Revisiting Batch Normalization For Practical Domain Adaptation",
        "https://arxiv.org/abs/1603.04779",
    ),
    "pascanu": Source(
        "Pascanu et al., 2013",
        "On the difficulty of training recurrent neural networks",
        "https://arxiv.org/abs/1211.5063",
    ),
    "santurkar": Source(
        "Santurkar et al., 2018",
        "How Does Batch Normalization Help Optimization?",
        "https://arxiv.org/abs/1805.11604",
    ),
    "summers": Source(
        "Summers & Dinneen, 2020",
        "Four Things Everyone Should Know to Improve Batch Normalization",
        "https://arxiv.org/abs/1906.03548",
    ),
    "tallec": Source(
        "Tallec & Ollivier, 2018",
        "Can recurrent neural networks warp time?",
        "https://arxiv.org/abs/1804.11188",
    ),
    "wu-he": Source(
        "Wu & He, 2018",
        "Group Normalization",
        "https://arxiv.org/abs/1803.08494",
    ),
    "wu-johnson": Source(
        "Wu & Johnson, 2021",
        'Rethinking "Batch" in BatchNorm',
        "https://arxiv.org/abs/2105.07576",
    ),
    "yang": Source(
        "Yang et al., 2019",
        "A Mean Field Theory of Batch Normalization",
        "https://arxiv.org/abs/1902.08129",
    ),
}
# Sections of the paper, for all claims of a study or for single claims.
SECTION_OF_STUDY = {
    "mnist_mlp": "4.1",
    "identities": "3",
    "whitening": "2",
    "learning_rate": "3.3",
    "regularization": "3.4",
    "inference": "3.1",
    "shift": "4.1",
    "batches": "4.2.1",
    "saturation": "3",
    "placement": "3.2",
    "inception": "4.2",
    "compare": "4.2",
}
SECTION_OF_CLAIM = {
    "bias-redundant": "3.2",
    "bessel": "3.1",
    "convolution": "3.2",
    "scale-invariance": "3.3",
    "faster": "4.1",
    "lrn-unneeded": "4.2.1",
    "seven-changes": "4.2.1",
}
LATER_OF_CLAIM = {
    "bn-relu-growth": "yang",
    "clipping": "pascanu",
    "forget-bias": "tallec",
    "clipping-recurrent": "pascanu",
    "low-rate-equal": "bjorck",
    "batch-noise": "hoffer",
    "small-batches": "wu-he",
    "alternatives": "wu-he",
    "ghost-batches": "hoffer",
    "renorm-small": "ioffe",
    "population-size": "wu-johnson",
    "shift-mended": "wu-johnson",
    "noisy-bn": "santurkar",
    "smoother": "santurkar",
    "renorm-rescues": "ioffe",
    "statistics-transfer": "li",
    "norms-group": "wu-he",
    "norms-layer": "ba",
    "norms-weight": "gitman",
    "norms-ghost": "summers",
    "norms-bfloat16": "kalamkar",
}


def citations(claim: Claim) -> list[Citation]:
    """Return the sources of a claim as precisely as known: section of the paper, later work.

    Args:
      claim: with keys of `SOURCES`.

    Example:
      >>> from experiments.ledger import claims, sources
      >>> claim = next(claim for claim in claims.CLAIMS if claim.id == "renorm-small")
      >>> [(citation.key, citation.source.label) for citation in sources.citations(claim)]
      [('later', 'Ioffe, 2017')]
    """
    return [Citation(key, _source(key, claim)) for key in claim.sources]


def _source(key: str, claim: Claim) -> Source:
    whole = SOURCES[key]
    if key == "paper":
        section = SECTION_OF_CLAIM.get(claim.id) or SECTION_OF_STUDY.get(claim.experiment)
        if section:
            label = f"paper, section {section}"
            return Source(label, whole.title, f"{PAPER_AS_PAGE}#{_anchor(section)}")
    if key == "later" and claim.id in LATER_OF_CLAIM:
        return LATER[LATER_OF_CLAIM[claim.id]]
    return whole


def _anchor(section: str) -> str:
    """Convert a section number to its anchor in the HTML paper: 4.2.1 is S4.SS2.SSS1."""
    return ".".join("S" * depth + number for depth, number in enumerate(section.split("."), 1))
