"""The claims: of the paper's abstract, of what it describes, of the official code, and of this project."""

from harness.reports.claim_rules import (
    GAINS,
    NEGLIGIBLE,
    OWED_HERE,
    SAME,
    SUFFICES,
    Claim,
    at_least,
    at_most,
    gains,
    is_about,
)
from harness.reports.evidence import (
    SIXTEEN,
    best_minus,
    counted_overhead,
    farthest,
    log_slope,
    minus,
    minus_best,
    minus_chance,
    nothing,
    relative_gain,
    slope,
    study_minus,
)

ABSTRACT, DESIGN = "paper, abstract", "paper, the design it describes"
CODE, OURS = "the official code's behaviour (ours)", "ours"
PROFILE, SCALING, STUDY = "make profile", "make scaling", "make plug-and-play"
PAPER_SCALE = "python -m harness table scale=paper (not there yet: it needs GPUs, the data and the weights)"
FRAMES, DOUBLINGS = (16, 32, 64, 128), 3
LINEAR = 1.05  # a log-log slope that still passes for linear
SLOW, FAST_ONLY = "slow_fast@128", "compressor_only@128"
GATES = ("static_tanh", "dynamic", "dynamic_tanh_no_warmup", "dynamic_tanh_linear_warmup", "sigmoid", "none")
COMPRESSORS = ("adaptive_average", "strided_sampling", "temporal_average", "similarity_merging", "token_merging")
SELECTORS = ("median_distance", "frame_difference", "salience")
FUSIONS = ("flamingo", "hyper_attention", "two_stream", "slow_and_faster")


def _grid(name: str) -> str:
    return f"make ablate GRID={name}"


def _distracted(cell: str) -> str:
    return f"{cell}_distracted"


OF_THE_PAPER = [
    Claim(
        "prefill_3_percent",
        "16 to 128 frames cost 3% more prefill compute of the language model",
        ABSTRACT,
        counted_overhead("llm_prefill"),
        is_about(3, 0.5, "the number of text tokens, which the abstract does not say"),
        PROFILE,
    ),
    Claim(
        "prefill_at_most_3_percent",
        "16 to 128 frames cost at most 3% more prefill compute of the language model",
        ABSTRACT,
        counted_overhead("llm_prefill"),
        at_most(3),
        PROFILE,
    ),
    Claim(
        "model_at_most_3_percent",
        "16 to 128 frames cost at most 3% more compute of the whole model, its vision tower included",
        "paper, abstract ('computation' read as all of it)",
        counted_overhead("model"),
        at_most(3),
        PROFILE,
    ),
    Claim(
        "gain_16_percent",
        "At 128 frames slow-fast averages at least 16% more than self-attention at 16, relative to the latter",
        f"{ABSTRACT} (there of published benchmarks at 7B; here the mini benchmarks, whose figure is another)",
        relative_gain("frames", SLOW, SIXTEEN),
        at_least(16),
        _grid("frames"),
    ),
    Claim(
        "gain_16_percent_7b",
        "The same of the published benchmarks at 7B",
        ABSTRACT,
        nothing,
        OWED_HERE,
        PAPER_SCALE,
    ),
    Claim(
        "state_of_the_art_7b",
        "The 7B model leads those of its size",
        ABSTRACT,
        nothing,
        OWED_HERE,
        PAPER_SCALE,
    ),
    Claim(
        "beats_the_compressor",
        "Slow tokens add to the compressor alone, at equal fast tokens",
        DESIGN,
        minus("frames", SLOW, FAST_ONLY),
        GAINS,
        _grid("frames"),
    ),
    Claim(
        "grows_with_frames",
        "Slow-fast gains with every doubling of its frames, 16 to 128",
        DESIGN,
        slope("frames", {f"slow_fast@{frames}": frames for frames in FRAMES}),
        gains(NEGLIGIBLE / DOUBLINGS),
        _grid("frames"),
    ),
    Claim(
        "as_self_attention_on_all_frames",
        "Slow-fast loses less than 3 points to self-attention on all tokens of the same 128 frames",
        DESIGN,
        minus("frames", "self_attention@128", SLOW),
        SUFFICES,
        _grid("frames"),
    ),
    Claim(
        "text_only_suffices",
        "It is enough that text cross-attends: fast tokens that read too add less than 3 points",
        DESIGN,
        minus("scope", "all_tokens", "text_only"),
        SUFFICES,
        _grid("scope"),
    ),
    Claim(
        "a_gate_is_needed",
        "The dynamic gate, tanh and warm-up, is better than no gate",
        DESIGN,
        minus("gates", "dynamic_tanh", "none"),
        GAINS,
        _grid("gates"),
    ),
    Claim(
        "the_best_gate",
        "No other scalar gate is better by 3 points than the dynamic one with tanh and warm-up",
        DESIGN,
        best_minus("gates", GATES, "dynamic_tanh"),
        SUFFICES,
        _grid("gates"),
    ),
    Claim(
        "few_hybrid_layers_suffice",
        "A few hybrid layers are enough (every 8th of 28; at mini scale every other of 4): more add less than 3 points",
        DESIGN,
        best_minus("hybrid_layers", ("3", "4"), "2"),
        SUFFICES,
        _grid("hybrid_layers"),
    ),
    Claim(
        "spread_over_the_depth",
        "No other place of as many hybrid layers is better by 3 points than spread from layer 0 on",
        DESIGN,
        best_minus("placement", ("first", "middle", "last"), "every_other"),
        SUFFICES,
        _grid("placement"),
    ),
    Claim(
        "copied_keys_and_values",
        "Keys and values copied from the language model are a better start than random ones",
        DESIGN,
        minus("kv_init", "copy", "random"),
        GAINS,
        _grid("kv_init"),
    ),
    Claim(
        "compressors_interchangeable",
        "Beside slow tokens, compressors without parameters are interchangeable, to 3 points",
        OURS,
        farthest("compressors", COMPRESSORS, "sample_and_average"),
        SAME,
        _grid("compressors"),
    ),
    Claim(
        "instruction_aware",
        "What is read depends on the question: queried by another one, answers get worse",
        ABSTRACT,
        minus("instruction", "own_question", "another_question"),
        GAINS,
        _grid("instruction"),
    ),
    Claim(
        "question_tokens_read",
        "It is the question's tokens that read: with only the others reading, answers get worse",
        ABSTRACT,
        minus("instruction", "own_question", "no_question"),
        GAINS,
        _grid("instruction"),
    ),
    Claim(
        "linear_cost",
        "The whole model's cost grows at most linearly with the frames, counted at 7B",
        ABSTRACT,
        log_slope("slow_fast", "model", "counted"),
        at_most(LINEAR),
        SCALING,
    ),
    Claim(
        "linear_cost_measured",
        "The same, time measured on a mid-size model",
        ABSTRACT,
        log_slope("slow_fast", "model", "measured"),
        at_most(LINEAR),
        SCALING,
    ),
    Claim(
        "self_attention_is_linear",
        "Self-attention's would too (the control: it should be refuted)",
        OURS,
        log_slope("self_attention", "model", "counted"),
        at_most(LINEAR),
        SCALING,
    ),
    Claim(
        "plug_and_play",
        "A trained self-attention model that is converted and trained further gains over the same training without",
        ABSTRACT,
        study_minus("converted_all@320", "baseline_further@320"),
        GAINS,
        STUDY,
    ),
    Claim(
        "plug_and_play_new_parameters",
        "Training the new parameters alone gains too",
        ABSTRACT,
        study_minus("converted_new@320", "baseline_further@320"),
        GAINS,
        STUDY,
    ),
    Claim(
        "conversion_is_free",
        "A converted model loses less than 3 points before any training",
        f"{DESIGN} (gates start closed)",
        study_minus("baseline_further@0", "converted_all@0"),
        SUFFICES,
        STUDY,
    ),
]
OF_THE_OFFICIAL_CODE = [
    Claim(
        "untimed_slow_tokens",
        "Slow tokens without their time cost accuracy",
        CODE,
        minus("slow_time", "fourier", "untimed"),
        GAINS,
        _grid("slow_time"),
    ),
    Claim(
        "scrambled_keys_and_values",
        "Scrambling the copied keys and values costs accuracy",
        CODE,
        minus("kv_init", "copy", "scrambled"),
        GAINS,
        _grid("kv_init"),
    ),
    Claim(
        "decoding_without_slow_tokens",
        "Generated tokens that do not read the slow tokens cost accuracy",
        CODE,
        minus("decode_reads_slow", "reads", "does_not_read"),
        GAINS,
        _grid("decode_reads_slow"),
    ),
    Claim(
        "all_three_oddities",
        "The three together cost accuracy",
        CODE,
        minus("official_fixes", "all_mended", "official"),
        GAINS,
        _grid("official_fixes"),
    ),
]
OF_OURS = [
    Claim(
        "selector_suffices",
        "Where what is salient is what is asked about, self-attention on 16 selected frames loses less than 3 "
        "points to slow-fast",
        OURS,
        minus_best("selection", "slow_fast", SELECTORS),
        SUFFICES,
        _grid("selection"),
    ),
    Claim(
        "selector_fails_with_distractors",
        "With distractors that are as salient and never asked about, slow-fast is better than the best selector",
        OURS,
        minus_best("selection", _distracted("slow_fast"), tuple(map(_distracted, SELECTORS))),
        GAINS,
        _grid("selection"),
    ),
    Claim(
        "brief_events_gain",
        "With events of one frame, 128 frames gain over 16",
        OURS,
        minus("dwell", "slow_fast@128_1", "self_attention@16_1"),
        GAINS,
        _grid("dwell"),
    ),
    Claim(
        "long_events_do_not",
        "With events of 64 frames less than 3 points are left of the gain",
        OURS,
        minus("dwell", "slow_fast@128_64", "self_attention@16_64"),
        SUFFICES,
        _grid("dwell"),
        given=minus("dwell", "slow_fast@128_1", "self_attention@16_1"),
    ),
    *(
        Claim(
            f"control_{control}",
            f"{what}, less than 3 points are left of the gain over the compressor alone",
            OURS,
            minus("controls", control, "compressor_only"),
            SUFFICES,
            _grid("controls"),
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
        _grid("controls"),
    ),
    Claim(
        "language_alone_is_chance",
        "Questions cannot be answered without the video: shown grey frames, slow-fast is less than 3 points "
        "above guessing",
        OURS,
        minus_chance("controls", "blank_video"),
        SUFFICES,
        _grid("controls"),
    ),
    Claim(
        "needs_first_layer_reading",
        "On bases that were not trained to read the video in the first layer, slow tokens add less than 3 points",
        OURS,
        minus("base_reading", "slow_fast_no_rule", "compressor_only_no_rule"),
        SUFFICES,
        _grid("base_reading"),
        given=minus("base_reading", "slow_fast", "compressor_only"),
    ),
    Claim(
        "other_encoder",
        "The gain over the compressor does not hang on the encoder: it is there with one half as wide",
        OURS,
        minus("encoders", "slow_fast_narrow", "compressor_only_narrow"),
        GAINS,
        _grid("encoders"),
    ),
    Claim(
        "better_than_other_fusions",
        "Slow-fast is better than every other way to read the slow tokens that is here",
        OURS,
        minus_best("fusion", "slow_fast", FUSIONS),
        GAINS,
        _grid("fusion"),
    ),
    Claim(
        "few_fast_tokens_suffice",
        "Beside slow tokens a quarter of the fast tokens is enough: what it loses is less than 3 points",
        OURS,
        minus("fast_tokens", "slow_fast_16", "slow_fast_4"),
        SUFFICES,
        _grid("fast_tokens"),
    ),
    Claim(
        "few_slow_tokens_suffice",
        "The slow tokens of 32 of 128 frames are enough: what they lose is less than 3 points",
        OURS,
        minus("slow_budget", "128_frames", "32_frames"),
        SUFFICES,
        _grid("slow_budget"),
    ),
]
CLAIMS = [*OF_THE_PAPER, *OF_THE_OFFICIAL_CODE, *OF_OURS]
"""Every claim, in the order of claims.csv."""
