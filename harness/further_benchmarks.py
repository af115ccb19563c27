"""Further columns of the paper's table: benchmarks that are run on real data only, as lmms-eval packages them.

The mini suite and the average over five benchmarks know nothing of them.
"""

from dataclasses import replace

from harness.benchmarks import EGOSCHEMA, LETTERS, VIDEOMME, Benchmark, lettered_lines

OPEN_ENDED = 0  # options of a question without any

VIDEOMME_SUBTITLES = replace(
    VIDEOMME,
    name="videomme_w_subtitle",
    title="Video-MME with subtitles",
    # The packaged task shows what videomme/subtitle/{videoID}.srt below HF_HOME says at 32 frames, however many the
    # model sees; it finds those frames in an .mp4 only, and shows nothing beside videos of other endings.
    definitions={"videomme_w_subtitle": "videomme/videomme_w_subtitle.yaml"},
)
PERCEPTIONTEST = Benchmark(
    name="perceptiontest_val_mc",
    title="PerceptionTest",
    definitions={"perceptiontest_val_mc": "perceptiontest/val/perceptiontest_mc.yaml"},
    metric="accuracy",
    scale=1,
    aggregation="samples",
    hub="lmms-eval/PerceptionTest_Val",
    split="validation",
    columns=("video_name", "question", "options", "answer_id", "area"),
    option_counts=(3,),
    video_of=lambda doc, task: f"perceptiontest_val/videos/{doc['video_name']}.mp4",
    target_of=lambda doc: int(doc["answer_id"]),
    options_of=lambda doc: len(doc["options"]),
    category_of=lambda doc, task: str(doc["area"]),
    right=lambda value: value["correct"] == 1,
    config_of=lambda task: "mc_question_val",
    endings=(".mp4", ".MP4"),
)
NEXTQA = Benchmark(
    name="nextqa_mc_test",
    title="NExT-QA",
    definitions={"nextqa_mc_test": "nextqa/nextqa_mc_test.yaml"},
    metric="exact_match",
    scale=1,
    aggregation="samples",
    hub="lmms-eval/NExTQA",
    split="test",
    columns=("video", "question", "a0", "a1", "a2", "a3", "a4", "answer", "type"),
    option_counts=(5,),
    video_of=lambda doc, task: f"nextqa/NExTVideo/{doc['video']}.mp4",  # the table holds numbers
    target_of=lambda doc: int(doc["answer"]),
    options_of=lambda doc: 5,
    category_of=lambda doc, task: str(doc["type"]),
    right=bool,
    config_of=lambda task: "MC",
    endings=(".mp4", ".MP4"),
)
ACTIVITYNETQA = Benchmark(
    name="activitynetqa",
    title="ActivityNetQA",
    definitions={"activitynetqa": "activitynetqa/activitynetqa_generation.yaml"},
    metric="gpt_eval_accuracy",
    scale=100,
    aggregation="samples",  # of those that the judge calls right or wrong
    hub="lmms-eval/ActivityNetQA",
    split="test",
    columns=("video_name", "question", "answer", "question_id", "type"),
    option_counts=(OPEN_ENDED,),
    video_of=lambda doc, task: f"activitynetqa/all_test/v_{doc['video_name']}.mp4",
    target_of=lambda doc: None,
    options_of=lambda doc: OPEN_ENDED,
    category_of=lambda doc, task: str(doc["type"]),
    right=lambda value: "yes" in value["Correctness"].lower(),
    endings=(".mp4", ".webm", ".mkv"),
    judge=True,
)
TEMPCOMPASS = Benchmark(
    name="tempcompass",
    title="TempCompass",
    # One of four tasks of TempCompass, of which the official script runs all: the others need a judge.
    definitions={"tempcompass_multi_choice": "tempcompass/tempcompass_mc.yaml"},
    metric="avg_accuracy",
    scale=100,
    aggregation="samples",
    hub="lmms-eval/TempCompass",
    split="test",
    columns=("video_id", "question", "answer", "dim"),
    option_counts=(2, 3, 4),
    video_of=lambda doc, task: f"tempcompass/videos/{doc['video_id']}.mp4",
    target_of=lambda doc: LETTERS.index(doc["answer"][0]),  # "B. backward"
    options_of=lambda doc: lettered_lines(doc["question"], "{}."),
    category_of=lambda doc, task: doc["dim"],
    right=lambda value: value["rating"] == 1,
    config_of=lambda task: "multi-choice",
    endings=(".mp4",),
    categories=("action", "speed", "direction", "order", "attribute_change"),
    letters_only=True,
)
EGOSCHEMA_FULL = replace(
    EGOSCHEMA,
    name="egoschema_full",
    title="EgoSchema, full set",
    definitions={"egoschema": "egoschema/egoschema.yaml"},
    metric="submission",
    target_of=lambda doc: None,
    right=None,
    config_of=lambda task: "GENERATION",
    submission=True,
)
FURTHER = {
    benchmark.name: benchmark
    for benchmark in (
        *(VIDEOMME_SUBTITLES, PERCEPTIONTEST, NEXTQA, ACTIVITYNETQA, TEMPCOMPASS),
        EGOSCHEMA_FULL,
    )
}
