"""Stand-ins for what the paper scale downloads: tiny, but in the layouts that the hub's repositories really have.

    python tests/stand_in_hub.py FOLDER     FOLDER/hub/<org>/<name>/ the datasets' repositories, archives unopened
                                            FOLDER/data/             the same as a data root, checkpoints in models/
                                            FOLDER/checkpoint/       an official checkpoint

Files' names, archives' kinds and columns are those that the cards and file lists of the datasets show (the
catalogue has the sources); questions, videos and weights are made up. MVBench is as its branch `video` is.
"""

import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from videos import picture

from harness.benchmarks import BENCHMARKS, LETTERS, MVBENCH_FOLDERS, all_benchmarks
from harness.mini.clips import encode_mp4

FRAMES, FPS = 24, 8
PARTS = 2  # pieces that LongVideoBench's tar is cut into
COUNTS = {  # questions and videos of each benchmark's stand-in
    **{"videomme": (6, 2), "mlvu": (7, 7), "mvbench": (20, 20), "egoschema": (3, 3), "longvideobench": (4, 4)},
    **{"videomme_w_subtitle": (6, 2), "perceptiontest_val_mc": (3, 1), "nextqa_mc_test": (3, 3)},
    **{"activitynetqa": (2, 2), "tempcompass": (5, 5), "egoschema_full": (5, 5)},
}
FIVE, EVERY = tuple(BENCHMARKS), tuple(COUNTS)
COLOURS = ("red", "green", "blue", "yellow", "white")
Files = dict[str, bytes]


@cache
def video(number: int) -> bytes:
    """An mp4 file of three seconds; every number is another one."""
    frames_THWC = np.stack([picture(9 * number + 2 * t) for t in range(FRAMES)])
    return encode_mp4(frames_THWC, fps=FPS)


def options(count: int, lettered: bool = True) -> list[str]:
    """So many colours, with their letters or bare."""
    return [f"{LETTERS[i]}. {COLOURS[i]}" if lettered else COLOURS[i] for i in range(count)]


def zipped(files: Files) -> bytes:
    """A zip archive of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Files) -> bytes:
    """A tar archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def parquet(docs: Iterable[dict[str, Any]], **dtypes: str) -> bytes:
    """A table of these rows; `dtypes` for columns whose values do not say."""
    return pd.DataFrame(list(docs)).astype(dtypes).to_parquet(index=False)


def card(**paths: str) -> bytes:
    """A README.md whose front matter declares configuration -> SPLIT:PATH; dots stand for dashes in names."""
    split = {name.replace(".", "-"): declared.split(":") for name, declared in paths.items()}
    configs = [{"config_name": n, "data_files": [{"split": s, "path": path}]} for n, (s, path) in split.items()]
    return f"---\n{yaml.safe_dump({'configs': configs}, sort_keys=False)}---\n".encode()


# ------------------------------------------------------------------------------------------- the five benchmarks


def videomme() -> Files:
    """Two videos with three questions each; one has subtitles."""
    kinds = BENCHMARKS["videomme"].categories
    docs = [
        {
            "duration": ("short", "long")[v],
            "question_id": f"{v + 1:03}-{q + 1}",
            "task_type": kinds[3 * v + q],
            "question": f"What colour comes at place {q + 1}?",
            "options": options(4),
            "answer": LETTERS[(v + q) % 4],
        }
        | {"video_id": f"{v + 1:03}", "videoID": f"mme_{v}", "url": f"https://www.youtube.com/watch?v=mme_{v}"}
        | {"domain": "Knowledge", "sub_category": "Astronomy"}
        for v in range(2)
        for q in range(3)
    ]
    line = '1\n00:00:00,000 --> 00:00:02,000\n<font color="white" size=".72c">now it is red</font>\n\n'
    return {
        "README.md": card(videomme="test:videomme/test-*"),
        "videomme/test-00000-of-00001.parquet": parquet(docs),
        "subtitle.zip": zipped({"subtitle/mme_0.srt": line.encode()}),
        "videos_chunked_01.zip": zipped({"data/mme_0.mp4": video(0)}),
        "videos_chunked_02.zip": zipped({"data/mme_1.mp4": video(1)}),
    }


def mlvu() -> Files:
    """A question of every category; this repository has no card."""
    docs = [
        {
            "video_name": f"{kind}_{i}.mp4",
            "duration": FRAMES / FPS,
            "question": "What colour is it?\n" + "\n".join(f"({LETTERS[k]}) {COLOURS[k]}" for k in range(4)),
            "candidates": options(4, lettered=False),
            "answer": LETTERS[i % 4],
            "task_type": kind,
            "question_id": f"{kind}_{i}",
        }
        for i, kind in enumerate(BENCHMARKS["mlvu"].categories)
    ]
    videos = [(doc["video_name"], video(2 + i)) for i, doc in enumerate(docs)]
    tables = {"mlvu/test-00000-of-00001.parquet": parquet(docs)}
    return tables | {"video_part_1.zip": zipped(dict(videos[:4])), "video_part_2.zip": zipped(dict(videos[4:]))}


def mvbench() -> Files:
    """A question of each of the twenty tasks; the videos lie unpacked beside the tables."""
    files: Files = {}
    for i, (task, folder) in enumerate(MVBENCH_FOLDERS.items()):
        count = 3 + i % 2
        doc = {
            "video": f"{task}.mp4",
            "question": "What colour is it?",
            "candidates": options(count, lettered=False),
            "answer": COLOURS[i % count],
        }
        timed = {"start": 0.0, "end": 2.0} if task in ("action_sequence", "action_prediction") else {}
        files[f"json/{task}.json"] = json.dumps([doc | timed]).encode()
        files[f"{folder}/{task}.mp4"] = video(10 + i % 5)
    return {"README.md": card(**{task: f"train:json/{task}.json" for task in MVBENCH_FOLDERS}), **files}


def egoschema() -> Files:
    """Five questions, three of them in the subset that has public answers."""
    docs = [
        {
            "question_idx": str(i),
            "question": "What was C doing?",
            "video_idx": f"0{i}ac2a78-4b1e",
            "option": options(5),
            "answer": str(i % 5),
        }
        for i in range(5)
    ]
    videos = [(f"videos/{doc['video_idx']}.mp4", video(15 + i)) for i, doc in enumerate(docs)]
    return {
        "README.md": card(GENERATION="test:GENERATION/test-*", Subset="test:Subset/test-*"),
        "GENERATION/test-00000-of-00001.parquet": parquet([doc | {"answer": None} for doc in docs], answer="string"),
        "Subset/test-00000-of-00001.parquet": parquet(docs[:3]),
        "videos_chunked_01.zip": zipped(dict(videos[:3])),
        "videos_chunked_02.zip": zipped(dict(videos[3:])),
    }


def longvideobench() -> Files:
    """Four questions with answers and two without; the videos are one tar in several parts."""
    docs = [
        {
            "video_id": f"lvb_{i}",
            "id": f"lvb_{i}_0",
            "video_path": f"lvb_{i}.mp4",
            "subtitle_path": f"lvb_{i}_en.json",
            "correct_choice": i % 3 if i < 4 else -1,
            "question": "What colour is it?",
            **{f"option{k}": COLOURS[k] if k < 3 + i % 3 else "N/A" for k in range(5)},
            "duration": FRAMES / FPS,
            "duration_group": (15, 60, 600, 3600)[i % 4],
            "question_category": BENCHMARKS["longvideobench"].categories[i],
            "topic_category": "KH-Knowledge-History",
            "starting_timestamp_for_subtitles": 0.0,
        }
        for i in range(6)
    ]
    videos = tarred({f"videos/{doc['video_path']}": video(20 + i) for i, doc in enumerate(docs)})
    cut = -(-len(videos) // PARTS)
    said = json.dumps([{"start": "00:00:00.000", "end": "00:00:02.000", "line": "now it is red"}]).encode()
    return {
        "README.md": b"---\nextra_gated_prompt: conditions\n---\n",
        "validation-00000-of-00001.parquet": parquet(docs[:4]),
        "test-00000-of-00001.parquet": parquet(docs[4:]),
        "lvb_val.json": json.dumps(docs[:4]).encode(),
        "lvb_test_wo_gt.json": json.dumps(docs[4:]).encode(),
        "subtitles.tar": tarred({f"subtitles/{doc['subtitle_path']}": said for doc in docs}),
        **{f"videos.tar.part.a{LETTERS[i].lower()}": videos[i * cut : (i + 1) * cut] for i in range(PARTS)},
    }


# ----------------------------------------------------------------------------------------- the further benchmarks


def perceptiontest() -> Files:
    """Three questions about one video."""
    docs = [
        {
            "video_name": "video_7",
            "question": "What colour is it?",
            "question_id": str(i),
            "options": options(3, lettered=False),
            "answer_id": str(i),
        }
        | {"area": "Abstraction", "reasoning": "Descriptive", "tag": ["object counting"]}
        for i in range(3)
    ]
    return {
        "README.md": card(mc_question_val="validation:mc_question_val/validation-*"),
        "mc_question_val/validation-00000-of-00001.parquet": parquet(docs),
        "valid_audios.zip": zipped({"audios/video_7.wav": b"RIFF"}),
        "videos_chunked_01.zip": zipped({"videos/video_7.mp4": video(26)}),
    }


def nextqa() -> Files:
    """Three questions about three videos, whose names are numbers."""
    docs = [
        {
            "video": 4010069381 + i,
            "question": "what colour is it",
            "answer": i,
            "qid": i,
            "type": ("CW", "TN", "DC")[i],
        }
        | {"frame_count": FRAMES, "width": 64, "height": 48}
        | {f"a{k}": COLOURS[k] for k in range(5)}
        for i in range(3)
    ]
    return {
        "README.md": card(MC="test:MC/test-*"),
        "MC/test-00000-of-00001.parquet": parquet(docs),
        "videos.zip": zipped({f"NExTVideo/{doc['video']}.mp4": video(27 + i) for i, doc in enumerate(docs)}),
    }


def activitynetqa() -> Files:
    """Two questions without options: a judge scores them."""
    docs = [
        {"video_name": f"anet_{i}", "question_id": f"v_anet_{i}_1", "question": "what colour is it"}
        | {"answer": COLOURS[i], "type": "4"}
        for i in range(2)
    ]
    return {
        "README.md": card(default="test:data/test-*"),
        "data/test-00000-of-00001.parquet": parquet(docs),
        "videos_chunked_01.zip": zipped({"all_test/v_anet_0.mp4": video(30)}),
        "videos_chunked_02.zip": zipped({"all_test/v_anet_1.mp4": video(31)}),
    }


def tempcompass() -> Files:
    """A question of each dimension; the options stand in the question."""
    dimensions = ("action", "attribute_change", "direction", "order", "speed")
    docs = [
        {
            "video_id": str(1101 + i),
            "question": "What colour is it?\n" + "\n".join(options(4)),
            "answer": options(4)[i % 4],
            "dim": dimension,
        }
        for i, dimension in enumerate(dimensions)
    ]
    videos = {f"videos/{doc['video_id']}.mp4": video(32 + i) for i, doc in enumerate(docs)}
    return {
        "README.md": card(**{"multi.choice": "test:multi-choice/test-*"}),
        "multi-choice/test-00000-of-00001.parquet": parquet(docs),
        "tempcompass_videos.zip": zipped(videos),
    }


REPOSITORIES: dict[str, tuple[Callable[[], Files], str]] = {
    "lmms-eval/Video-MME": (videomme, "videomme"),
    "sy1998/MLVU_dev": (mlvu, "mlvu"),
    "OpenGVLab/MVBench": (mvbench, "mvbench_video"),
    "lmms-eval/egoschema": (egoschema, "egoschema"),
    "longvideobench/LongVideoBench": (longvideobench, "datasets/longvideobench"),
    "lmms-eval/PerceptionTest_Val": (perceptiontest, "perceptiontest_val"),
    "lmms-eval/NExTQA": (nextqa, "nextqa"),
    "lmms-eval/ActivityNetQA": (activitynetqa, "activitynetqa"),
    "lmms-eval/TempCompass": (tempcompass, "tempcompass"),
}
"""What is in each repository, and where below HF_HOME the packaged tasks look for its videos (their `cache_dir`)."""


# ------------------------------------------------------------------------------------------------- what is written


def repositories(benchmarks: Sequence[str]) -> list[str]:
    """The repositories of these benchmarks, each once."""
    return list(dict.fromkeys(all_benchmarks()[name].hub for name in benchmarks))


def write_stand_ins(hub: Path, benchmarks: Sequence[str] = EVERY) -> Path:
    """The repositories of these benchmarks at hub/<org>/<name>/, as a download would bring them; returns `hub`."""
    for repository in repositories(benchmarks):
        for path, content in REPOSITORIES[repository][0]().items():
            target = Path(hub) / repository / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return Path(hub)


def write_expected(data: Path, benchmarks: Sequence[str] = EVERY) -> None:
    """DATA/expected.json: the stand-ins' numbers of questions and videos, in place of the published ones."""
    counts = {name: dict(zip(("questions", "videos"), COUNTS[name], strict=True)) for name in benchmarks}
    Path(data).mkdir(parents=True, exist_ok=True)
    (Path(data) / "expected.json").write_text(json.dumps(counts, indent=2) + "\n")


def lay_out(hub: Path, data: Path, benchmarks: Sequence[str] = EVERY) -> Path:
    """A data root of `hub`'s repositories: tables in data/hub, every archive unpacked below data/home.

    The slow truth of what a fetch makes; returns `data`.
    """
    for repository in repositories(benchmarks):
        source, home = Path(hub) / repository, Path(data) / "home" / REPOSITORIES[repository][1]
        shutil.copytree(source, Path(data) / "hub" / repository)
        home.mkdir(parents=True)
        for file in sorted(source.glob("*.zip")):
            zipfile.ZipFile(file).extractall(home)
        for pattern in ("subtitles.tar", "videos.tar.part.*"):
            if parts := sorted(source.glob(pattern)):
                whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
                with tarfile.open(fileobj=whole) as archive:
                    archive.extractall(home, filter="data")
        if repository == "OpenGVLab/MVBench":
            for folder in {path.split("/")[0] for path in MVBENCH_FOLDERS.values()}:
                shutil.copytree(source / folder, home / folder)
    write_expected(data, benchmarks)
    return Path(data)


def stand_in_data(folder: Path, benchmarks: Sequence[str] = EVERY) -> Path:
    """A data root of stand-ins at `folder`/data, with the repositories it came from at `folder`/hub."""
    return lay_out(write_stand_ins(Path(folder) / "hub", benchmarks), Path(folder) / "data", benchmarks)


VISION_FILE = "vision_tower.safetensors"


def write_official_checkpoint(folder: Path, tower_inside: bool = False, shard_bytes: int = 30_000) -> Path:
    """A tiny random checkpoint in the official layout, in bfloat16 shards; returns `folder`.

    The vision tower's weights are in a file of their own, as the official code reads them (`VISION_FILE`, with
    timm's names), or `tower_inside` the shards. The tokenizer knows the words of the stand-ins' questions.
    """
    import torch
    from safetensors.torch import save_file
    from test_official_checkpoints import HIDDEN, TINY, TOWER, official_weights, write

    from harness.mini.tokenizer import build_tokenizer

    words = build_tokenizer([" ".join(COLOURS), "What colour is it Answer with the letter", "best option"], [])
    weights = official_weights()
    generator = torch.Generator().manual_seed(1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.randn(len(words), HIDDEN, generator=generator).mul(HIDDEN**-0.5).to(torch.bfloat16)
    tower = {name.removeprefix(TOWER): weights.pop(name) for name in list(weights) if name.startswith(TOWER)}
    config = TINY | {"vocab_size": len(words), "bos_token_id": None, "eos_token_id": words.eos_token_id}
    inside = {TOWER + name: tensor for name, tensor in tower.items()} if tower_inside else {}
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    write(Path(folder), weights | inside, config, shard_bytes)
    if not tower_inside:
        save_file(tower, Path(folder) / VISION_FILE, metadata={"format": "pt"})
    words.save_pretrained(folder)
    return Path(folder)


def main(arguments: Sequence[str]) -> None:
    """Everything into the folder that was given, the checkpoint also where both released ones belong."""
    from harness.paper.models import load_model

    if len(arguments) != 1:
        sys.exit(__doc__)
    folder = Path(arguments[0])
    data, checkpoint = stand_in_data(folder), write_official_checkpoint(folder / "checkpoint")
    for name in ("released_64", "released_96"):
        shutil.copytree(checkpoint, load_model(name).at(data))
    print(f"data root: {data}\ncheckpoint: {checkpoint}")


if __name__ == "__main__":
    main(sys.argv[1:])
