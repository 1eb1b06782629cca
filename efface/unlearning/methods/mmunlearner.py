"""MMUnlearner: ascent on the forget set's pictures, through a saliency mask, plus descent on the retain set.

The mask acts on the forget term only, so what it leaves out changes exactly as the retain term wants.
It comes from ``efface.saliency``; the terms are those of gradient difference.

Reference:
    Huo et al., "MMUnlearner", arXiv:2502.11051, equation of the masked update. The released code steps on
    the two terms one after the other and lets parameters outside the mask file move freely; the paper's
    single masked step is what stands here.
"""

from efface.unlearning.method import Method, ascent_loss

METHOD = Method(
    name="mmunlearner",
    paper="arXiv:2502.11051",
    forget_loss=ascent_loss,
)
