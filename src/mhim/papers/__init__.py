"""Published results on public sets, by the protocol of the paper that published them.

Nothing here touches whole-slide training: a paper's own network and optimisation are written down as the paper (or,
where it says nothing, the authors' program) has them, and what could not be verified is said in the results.
"""
