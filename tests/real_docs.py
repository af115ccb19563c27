"""Small docs in the published schemas of all benchmarks, with no columns but those that the registry names."""

import itertools
from typing import Any

from harness.benchmarks import LETTERS, all_benchmarks

WORDS = ("sitting down", "standing up", "lying still", "going away", "coming back")


def lettered(form: str, n: int) -> list[str]:
    return [form.format(letter, word) for letter, word in zip(LETTERS, WORDS[:n], strict=False)]


def docs_of(name: str) -> list[dict[str, Any]]:
    """A benchmark's docs, every option being right in one of them."""
    question = "what is the man doing"
    entry = all_benchmarks()[name]
    if name in ("videomme", "videomme_w_subtitle"):
        labels = {"question_id": "001-1", "duration": "long", "domain": "Knowledge", "sub_category": "Law"}
        tasks = itertools.cycle(entry.categories)
        return [
            {"videoID": "fFjv93ACGo8", **labels, "task_type": next(tasks), "question": question}
            | {"options": lettered("{}. {}", 4), "answer": letter}
            for letter in LETTERS[:4]
        ]
    if name == "mlvu":
        return [
            {"video_name": f"3_ego/ego_{i}.mp4", "answer": LETTERS[i % 4], "task_type": kind}
            | {"question": "\n".join([f"{question} now?", *lettered("({}) {}", 4)])}
            for i, kind in enumerate(entry.categories)
        ]
    if name == "mvbench":
        return [
            {"video": "166583.webm", "question": question, "candidates": list(WORDS[:n]), "answer": WORDS[i]}
            for n in entry.option_counts
            for i in range(n)
        ]
    if name in ("egoschema", "egoschema_full"):
        answers = [None] * 5 if name == "egoschema_full" else list("01234")
        return [
            {"video_idx": f"0074f737-11cb-{i}", "question": question, "option": lettered("{}. {}", 5), "answer": a}
            for i, a in enumerate(answers)
        ]
    if name == "longvideobench":
        return [
            {"id": f"vid_{n}_{i}", "video_path": "86CxyhFV9MI.mp4", "question": question, "duration_group": 3600}
            | {f"option{j}": WORDS[j] if j < n else "N/A" for j in range(5)}
            | {"question_category": "T3E", "correct_choice": i}
            for n in entry.option_counts
            for i in range(n)
        ]
    if name == "perceptiontest_val_mc":
        return [
            {
                "video_name": "video_11",
                "question": question,
                "options": list(WORDS[:3]),
                "answer_id": i,
                "area": "physics",
            }
            for i in range(3)
        ]
    if name == "nextqa_mc_test":
        options = {f"a{i}": word for i, word in enumerate(WORDS)}
        return [{"video": 4882821564, "question": question, **options, "answer": i, "type": "CW"} for i in range(5)]
    if name == "activitynetqa":
        return [
            {"video_name": "1QIUV7WYKXg", "question": "is he dancing", "question_id": f"v_1_{i}", "type": kind}
            | {"answer": answer}
            for i, (kind, answer) in enumerate([("3", "yes"), ("4", "red"), ("0", "sitting down")])
        ]
    assert name == "tempcompass"
    dims = itertools.cycle(entry.categories)
    return [
        {"video_id": "1021488277", "dim": next(dims), "answer": lettered("{}. {}", n)[i]}
        | {"question": "\n".join([f"{question}?", *lettered("{}. {}", n)])}
        for n in entry.option_counts
        for i in range(n)
    ]
