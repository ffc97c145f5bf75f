"""How long visual tokens carry information: scores, the information horizon, and sweeps over both.

    map = information.score(model, inputs, answer)          # one batch, every layer and token

Definitions after arXiv 2512.07580; the rule for the horizon is ours, as the paper gives none.
"""

from vtfast.information.maps import InformationMap, PictureScores, score

__all__ = ["InformationMap", "PictureScores", "score"]
