"""The claims of this project itself: when selectors suffice, what controls leave, what the gain hangs on."""

from harness.reports.claim_rules import GAINS, OURS, SUFFICES, Claim, grid_command
from harness.reports.evidence import minus, minus_best, minus_chance

SELECTORS = ("median_distance", "frame_difference", "salience")
FUSIONS = ("flamingo", "hyper_attention", "two_stream", "slow_and_faster")


def _distracted(cell: str) -> str:
    return f"{cell}_distracted"


OF_OURS = [
    Claim(
        "selector_suffices",
        "Where what is salient is what is asked about, self-attention on 16 selected frames loses less than 3 "
        "points to slow-fast",
        OURS,
        minus_best("selection", "slow_fast", SELECTORS),
        SUFFICES,
        grid_command("selection"),
    ),
    Claim(
        "better_than_selectors_with_distractors",
        "With distractors that are as salient and never asked about, slow-fast is better than the best selector",
        OURS,
        minus_best("selection", _distracted("slow_fast"), tuple(map(_distracted, SELECTORS))),
        GAINS,
        grid_command("selection"),
    ),
    Claim(
        "brief_events_gain",
        "With events of one frame, 128 frames gain over 16",
        OURS,
        minus("dwell", "slow_fast@128_1", "self_attention@16_1"),
        GAINS,
        grid_command("dwell"),
    ),
    Claim(
        "long_events_do_not",
        "With events of 64 frames less than 3 points are left of the gain",
        OURS,
        minus("dwell", "slow_fast@128_64", "self_attention@16_64"),
        SUFFICES,
        grid_command("dwell"),
        given=minus("dwell", "slow_fast@128_1", "self_attention@16_1"),
    ),
    *(
        Claim(
            f"control_{control}",
            f"{what}, less than 3 points are left of the gain over the compressor alone",
            OURS,
            minus("controls", control, "compressor_only"),
            SUFFICES,
            grid_command("controls"),
            given=minus("controls", "slow_fast", "compressor_only"),
        )
        for control, what in {
            "gate_closed": "With its gates closed",
            "other_video": "With the slow tokens of another video",
        }.items()
    ),
    Claim(
        "order_of_slow_frames",
        "The order of the slow tokens' frames matters: shuffled under their times, answers get worse",
        OURS,
        minus("controls", "slow_fast", "shuffled"),
        GAINS,
        grid_command("controls"),
    ),
    Claim(
        "language_alone_is_chance",
        "Questions cannot be answered without the video: shown grey frames, slow-fast is less than 3 points "
        "above guessing",
        OURS,
        minus_chance("controls", "blank_video"),
        SUFFICES,
        grid_command("controls"),
    ),
    Claim(
        "needs_first_layer_reading",
        "On bases that were not trained to read the video in the first layer, slow tokens add less than 3 points",
        OURS,
        minus("base_reading", "slow_fast_no_rule", "compressor_only_no_rule"),
        SUFFICES,
        grid_command("base_reading"),
        given=minus("base_reading", "slow_fast", "compressor_only"),
    ),
    Claim(
        "other_encoder",
        "The gain over the compressor does not hang on the encoder: it is there with one half as wide",
        OURS,
        minus("encoders", "slow_fast_narrow", "compressor_only_narrow"),
        GAINS,
        grid_command("encoders"),
    ),
    Claim(
        "better_than_other_fusions",
        "Slow-fast is better than every other way to read the slow tokens that is here",
        OURS,
        minus_best("fusion", "slow_fast", FUSIONS),
        GAINS,
        grid_command("fusion"),
    ),
    Claim(
        "few_fast_tokens_suffice",
        "Beside slow tokens a quarter of the fast tokens is enough: what it loses is less than 3 points",
        OURS,
        minus("fast_tokens", "slow_fast_16", "slow_fast_4"),
        SUFFICES,
        grid_command("fast_tokens"),
    ),
    Claim(
        "few_slow_tokens_suffice",
        "The slow tokens of 32 of 128 frames are enough: what they lose is less than 3 points",
        OURS,
        minus("slow_budget", "128_frames", "32_frames"),
        SUFFICES,
        grid_command("slow_budget"),
    ),
]
