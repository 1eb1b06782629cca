"""MMUnlearner: ascent on the forget set's pictures, through a saliency mask, plus descent on the retain set.

The mask acts on the forget term only, so what it leaves out changes exactly as the retain term wants.
It comes from ``efface.saliency``; the terms are those of gradient difference.

    paper            theta <- theta - eta ( -m * grad L_forget + grad L_retain ), one step
    official_code    a forget step, then a retain step: separate AdamW steps that share their moments. A
                     forget step comes every max(1, retain batches // forget batches) iterations, and
                     gradients are clipped before they are masked. An epoch is a pass over the retain set.

Reference:
    Huo et al., "MMUnlearner", arXiv:2502.11051, equation of the masked update, and the code released with it.
"""

from efface.settings import Settings
from efface.unlearning.method import Method, Update

SETTINGS = {"variant": {"enum": ["paper", "official_code"]}}


def update(settings: Settings) -> Update:
    """One step on both gradients in the paper, two steps in the released code."""
    return "joint" if settings["variant"] == "paper" else "alternating"


METHOD = Method(name="mmunlearner", paper="arXiv:2502.11051", update=update, settings=SETTINGS)
