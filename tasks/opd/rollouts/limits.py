"""Rollouts cut to fit into what a budget leaves."""
from collections.abc import Callable
from dataclasses import replace

from tasks.opd.core.costs import BY_AUTHOR


def written_within(write: Callable, authors: tuple[str, ...], prompts: list, seeds: list[int], engines) -> list:
    """The drafts of `write(prompts, seeds)` for the first prompts; all where `engines.most` limits none of `authors`.

    As many are written at once as fit however long they become, then as many as fit into what is left; the last one is
    cut off where nothing is left. A draft is a function of its seed, so it does not depend on which are written
    together. What they have is taken off `engines.most["tokens"]`.
    """
    most = engines.most
    if not most or not {BY_AUTHOR[author] for author in authors} & {*most["of"]}:
        return write(prompts, seeds)
    sampling, drafts = engines.sampling, []
    while most["tokens"] and len(drafts) < len(prompts):
        some = slice(len(drafts), len(drafts) + max(1, most["tokens"] // sampling["max_new_tokens"]))
        engines.sampling = {**sampling, "max_new_tokens": min(most["tokens"], sampling["max_new_tokens"])}
        for draft in write(prompts[some], seeds[some]):
            if most["tokens"]:      # a dataset's solutions may be longer than what is generated
                drafts.append(cut_off(draft, most["tokens"]))
                most["tokens"] -= len(drafts[-1].token_ids) if draft else 0
    engines.sampling = sampling
    return drafts


def cut_off(draft, tokens: int):
    """The first tokens of a draft, or None."""
    if draft is None or len(draft.token_ids) <= tokens:
        return draft
    return replace(draft, finish_reason="length", **{name: getattr(draft, name)[:tokens]
                                                     for name in ("token_ids", "logprobs", "author", "policy")})
