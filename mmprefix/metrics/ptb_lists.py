"""Closed lists of English words for Penn Treebank tokenisation: abbreviations, contractions, sentence openers."""

from __future__ import annotations

_TITLES = """
mr mrs ms messrs mme mlle dr drs prof profs rev hon esq jr sr bros pres gov govs sen sens rep reps atty adm supt insp
gen col capt lt lieut ens maj cmdr comdr cpl sgt pvt pfc brig det
"""
_PLACES = "st ste ave blvd rd sq ft mt bldg"
_MONTHS_AND_DAYS = "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri"
_STATES = "ala ariz calif colo conn fla ga ind kan ky md mich minn mo mont neb nev okla penn tenn va vt wis wyo"
_OFFICES = "inc co corp ltd cie dept univ assn asst assoc intl natl mfg treas"
_OTHERS = "vs etc cf al est ext tel ph wm jos alex ph.d e.g i.e"
_STARTS = """
A An The This That These He She It They We You There Here Her Their Our In At As But If When While After Then So
Such Some Many One Other What However About According Additionally Since Once Now Yet
"""

ABBREVIATIONS = frozenset(" ".join([_TITLES, _PLACES, _MONTHS_AND_DAYS, _STATES, _OFFICES, _OTHERS]).split())
"""Words that keep their period, in any case."""

CAPITALISED_ABBREVIATIONS = frozenset(["Miss", "Ark", "Del", "Ill", "La", "Mass", "Ore", "Pa", "Tex", "Wash"])
"""Abbreviations that are another word in lower case: they keep the period only with a capital, or in capitals."""

BEFORE_NUMBER = frozenset(["no.", "nos.", "ca.", "p.", "pp.", "fig.", "figs.", "op.", "art.", "prop."])
"""Words that keep their period before a number: ``no. 5``, but ``they said no.``"""

SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
    "c’mon": ("c", "'m", "on"),  # with a typographic apostrophe alone, as in published scores
    "s’mores": ("s", "'m", "ores"),
}
"""Words written as one that are several, and their tokens: in any case, with a typographic apostrophe in lower case."""

APOSTROPHE_WORDS = (
    *("ma'am", "o'clock", "c'mon", "ne'er", "e'er", "nor'easter", "s'mores", "somethin'", "dunkin'", "ol'"),
    *("ma’am", "o’clock", "c’mon", "ne’er", "s’mores", "somethin’", "dunkin’", "ol’"),  # in published scores no others
)
"""Words whose apostrophe, inside or at the end, is neither a quote nor the start of a clitic."""

SENTENCE_STARTS = frozenset(_STARTS.split())
"""Words that, after a single letter and a period, show that the period ended a sentence: ``letter B. The next``."""
