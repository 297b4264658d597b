"""The loss: what a paper changes lives here.

columns      per-token columns of a scored set
positions    quantities by position, and where a signal ends in noise
rows         which rollouts
targets      which distribution is aimed at
vocabulary   passes over whole distributions, some rows at a time
supports     where it is compared
divergences  how far apart
advantages   what a token is worth
gaps         of them, those that come from the teacher alone
estimators   how that becomes a gradient
weights      which tokens count
reliability  how far a teacher's advice can be followed
suffixes     of them, those that fade or cut a rollout's end
statistics   of a term's tokens, for weights
reductions   how token losses become one number
terms        a term with its slots as functions
loss         terms as coefficients, a chunk's part of the loss
"""
