"""ImageNet-ESC: the classes that ImageNet and ESC-50 share, so that a picture and a sound can be shots of one class.

Lin et al., https://arxiv.org/abs/2301.06267; ESC-50, https://doi.org/10.1145/2733373.2806390.
"""

from __future__ import annotations

from mmprefix.errors import InputError

IMAGENET_ESC_27 = {  # index of the ImageNet-1k class → category of ESC-50
    7: "rooster",
    8: "hen",
    19: "chirping_birds",
    31: "frog",
    175: "dog",
    285: "cat",
    308: "insects",
    312: "crickets",
    341: "pig",
    349: "sheep",
    404: "airplane",
    466: "train",
    473: "can_opening",
    491: "chainsaw",
    497: "church_bells",
    508: "keyboard_typing",
    530: "clock_alarm",
    556: "crackling_fire",
    673: "mouse_click",
    861: "toilet_flush",
    882: "vacuum_cleaner",
    892: "clock_tick",
    896: "water_drops",
    897: "washing_machine",
    898: "drinking_sipping",
    899: "pouring_water",
    977: "sea_waves",
}
_BEYOND_19 = {  # left out of the benchmark of 19
    "can_opening",
    "church_bells",
    "crackling_fire",
    "toilet_flush",
    "water_drops",
    "drinking_sipping",
    "pouring_water",
    "sea_waves",
}


def imagenet_esc(classes: int = 27) -> dict[int, str]:
    """Index of the ImageNet-1k class → category of ESC-50, for the benchmark of 27 or of 19 ``classes``."""
    if classes not in (19, 27):
        raise InputError(f"classes {classes}: the benchmark has 27, or 19")
    return {index: name for index, name in IMAGENET_ESC_27.items() if classes == 27 or name not in _BEYOND_19}
