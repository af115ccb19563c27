"""Controls: what is done at evaluation, to the same trained model, to see what its answers depend on.

A control is one class here, under its name in `CONTROLS`: the plug-in asks it for a batch's prompts and videos,
and answers within its `asking`. The names stand in `harness.settings.Control` as well, for the command line.

Shapes: as in `architectures.tokens`; N questions of a batch.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from architectures.fusions.base import AttentionFusion
from architectures.prompts import Videos
from harness.errors import UserError
from harness.features import Seen
from harness.lmms_requests import Question
from harness.sampling import uniform_indices

MID_GREY = 128  # of 0..255
Scope = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
CONTROLS: "dict[str, type[Uncontrolled]]" = {}


def register(name: str) -> "Callable[[type[Uncontrolled]], type[Uncontrolled]]":
    """Files a control under its name."""

    def file(control: "type[Uncontrolled]") -> "type[Uncontrolled]":
        control.name = name
        CONTROLS[name] = control
        return control

    return file


def control_of(name: str) -> "Uncontrolled":
    """The control of a name, for one model; UserError for an unknown name."""
    if name not in CONTROLS:
        raise UserError(f"unknown control {name!r}: use one of {', '.join(CONTROLS)}")
    return CONTROLS[name]()


@register("none")
class Uncontrolled:
    """The model as it is. Every other control is this one with a difference.

    Attributes:
        about_slow_tokens: there is nothing to it without hybrid layers.
        other_video: it needs `Question.other`, another video for each question.
        other_question: it needs `Question.companion`, another prompt for each question.
    """

    name: ClassVar[str]
    about_slow_tokens: ClassVar[bool] = False
    other_video: ClassVar[bool] = False
    other_question: ClassVar[bool] = False

    def prepare(self, model: Any, processor: Any, frames: int) -> None:
        """Changes a loaded model, in place; `frames` are sampled of each video. UserError if nothing can be done."""

    def prompts(self, questions: Sequence[Question]) -> list[str]:
        """The prompts of the batch's rows. The first N rows are answers to the N questions, others are dropped."""
        return [question.prompt for question in questions]

    def videos(self, questions: Sequence[Question], seen: Mapping[Path, Seen]) -> dict[str, Videos]:
        """What the model is given of the rows' videos: its inputs `features`, `frame_times`, `slow_features`.

        Each as `together` has it: videos may differ in their numbers of frames.
        """
        return {
            "features": together([seen[question.path].features_BTPV for question in questions]),
            "frame_times": together([seen[question.path].times_BT for question in questions]),
        }

    def asking(self, model: Any) -> AbstractContextManager[None]:
        """What the model answers in."""
        return nullcontext()


@register("gate_closed")
class GateClosed(Uncontrolled):
    """Every gate is shut: nothing of the slow tokens is added."""

    about_slow_tokens = True

    def prepare(self, model: Any, processor: Any, frames: int) -> None:
        model.close_gates_()


@register("other_video")
class OtherVideo(Uncontrolled):
    """The slow tokens are those of the next video of the benchmark; fast tokens and times are the question's own.

    Of a video with another number of frames, as many frames as the question's own has, evenly spread.
    """

    about_slow_tokens = True
    other_video = True

    def videos(self, questions: Sequence[Question], seen: Mapping[Path, Seen]) -> dict[str, Videos]:
        inputs = super().videos(questions, seen)
        others = [seen[question.other].features_BTPV for question in questions]
        lengths = [len(own_TPV) for own_TPV in inputs["features"]]
        return {**inputs, "slow_features": together([*map(spread_to, others, lengths)])}


@register("shuffled")
class Shuffled(Uncontrolled):
    """The slow tokens' frames change places, while the times stay; fast tokens are as they are.

    The order is drawn from the video's name (`shuffled_order`). Without a time position on slow tokens it makes no
    difference: cross-attention has no order of its own. A video of which a single frame was sampled stays as it is.
    """

    about_slow_tokens = True

    def prepare(self, model: Any, processor: Any, frames: int) -> None:
        if model.selector.n_frames(frames) < 2:
            raise UserError(f"control={self.name}: a single frame has no order; sample or select at least 2 frames")

    def videos(self, questions: Sequence[Question], seen: Mapping[Path, Seen]) -> dict[str, Videos]:
        inputs = super().videos(questions, seen)
        slow = [
            features_TPV[None, shuffled_order(question.path.name, len(features_TPV))]
            for question, features_TPV in zip(questions, inputs["features"], strict=True)
        ]
        return {**inputs, "slow_features": together(slow)}


@register("blank_video")
class BlankVideo(Uncontrolled):
    """Language alone: the encoder sees nothing but mid-grey frames, at uniform times, in every video.

    The videos are read all the same, so that a question fails here if it fails without the control.
    """

    def prepare(self, model: Any, processor: Any, frames: int) -> None:
        self.model, self.processor = model, processor
        self.blanks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.blank(model.selector.n_frames(frames))

    def videos(self, questions: Sequence[Question], seen: Mapping[Path, Seen]) -> dict[str, Videos]:
        blanks = [self.blank(seen[question.path].features_BTPV.shape[1]) for question in questions]
        return {
            "features": together([features_BTPV for features_BTPV, _ in blanks]),
            "frame_times": together([times_BT for _, times_BT in blanks]),
        }

    def blank(self, T: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and times of T grey frames, features_BTPV and times_BT with B = 1; encoded once for each T."""
        if T not in self.blanks:
            side = self.model.encoder.image_size
            grey_THWC = np.full((T, side, side, 3), MID_GREY, np.uint8)
            shown = self.processor.watchable([grey_THWC], [np.linspace(0, 1, T)])
            with torch.inference_mode():
                features_BTPV = self.model.encode_video(shown["frames"].to(self.model.device))
            self.blanks[T] = features_BTPV, shown["frame_times"]
        return self.blanks[T]


@register("other_question")
class OtherQuestion(Uncontrolled):
    """The slow tokens are queried by another question about the same video: is the extraction instruction-aware?

    Row N + i of the batch asks row i's companion (`harness.lmms_requests.companions`). In each hybrid layer row i
    reads the slow tokens with that row's queries, token by token from the right end, in the prompt and in what is
    generated; self-attention, gate and fast tokens are its own. The companion is answered as without a control;
    once it has ended, its queries are those of padding. A batch takes twice the memory.
    """

    about_slow_tokens = True
    other_question = True

    def prepare(self, model: Any, processor: Any, frames: int) -> None:
        strange = [fusion for _, fusion in model.hybrid() if not isinstance(fusion, AttentionFusion)]
        if strange:
            raise UserError(
                f"control={self.name}: {type(strange[0]).__name__} makes its queries within, where another row's "
                "cannot be put in their place; use a fusion inside self-attention, such as slow_fast"
            )

    def prompts(self, questions: Sequence[Question]) -> list[str]:
        return [*super().prompts(questions), *(question.companion for question in questions)]

    def videos(self, questions: Sequence[Question], seen: Mapping[Path, Seen]) -> dict[str, Videos]:
        return super().videos([*questions, *questions], seen)

    @contextmanager
    def asking(self, model: Any) -> Iterator[None]:
        hooks = [fusion.register_forward_pre_hook(query_by_companions) for _, fusion in model.hybrid()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@register("non_question")
class NonQuestion(Uncontrolled):
    """Only tokens before the question read the slow tokens, as far as the model's scope lets them.

    That is the text before the video (with scope all_tokens the fast tokens too), but not the question, its options,
    the turn's end or what is generated: what is extracted cannot depend on what is asked.
    """

    about_slow_tokens = True

    def prepare(self, model: Any, processor: Any, frames: int) -> None:
        model.scope = before_question(model.scope)
        model.config.generated_read_slow = False
        text_video_text_BL = torch.tensor([[False, True, False]])
        if not model.scope(text_video_text_BL, torch.zeros_like(text_video_text_BL)).any():
            raise UserError(
                f"control={self.name}: scope {model.config.scope['name']} lets nothing before the question read the "
                "slow tokens; use control=gate_closed"
            )


def together(videos: Sequence[torch.Tensor]) -> Videos:
    """Features or times of one video each, with B = 1, as a model takes them: one batch if all are equally long.

    Else a list of one tensor per video, without B.
    """
    if len({video_BT.shape for video_BT in videos}) == 1:
        return torch.cat(list(videos))
    return [video_BT[0] for video_BT in videos]


def spread_to(video_BTPV: torch.Tensor, frames: int) -> torch.Tensor:
    """So many frames of a video, evenly spread over it, both ends included, some repeated if there are fewer."""
    T = video_BTPV.shape[1]
    return video_BTPV if frames == T else video_BTPV[:, torch.from_numpy(uniform_indices(T, frames))]


def shuffled_order(name: str, T: int) -> torch.Tensor:
    """A permutation of T frames that is not the identity (unless T is 1), `order_T`, drawn from a video's name."""
    if T == 1:
        return torch.zeros(1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]))
    order_T = torch.arange(T)
    while torch.equal(order_T, torch.arange(T)):
        order_T = torch.randperm(T, generator=generator)
    return order_T


def query_by_companions(fusion: AttentionFusion, args: tuple) -> tuple:
    """A hook before a fusion: rows 0 to N - 1 of 2 N read with the queries of rows N to 2 N - 1.

    `input_BLD` makes queries too, where a fusion has a projection of its own for them.
    """
    attended_BLQE, query_BQLE, memory, readers, scaling, input_BLD = args
    input_BLD = None if input_BLD is None else of_companions(input_BLD)
    return attended_BLQE, of_companions(query_BQLE), memory, readers, scaling, input_BLD


def of_companions(rows_B: torch.Tensor) -> torch.Tensor:
    """The second half of a batch's rows, twice."""
    second = rows_B[len(rows_B) // 2 :]
    return torch.cat([second, second])


def before_question(scope: Scope) -> Scope:
    """A scope without the text after a row's first visual token."""

    def reads(is_video_BL: torch.Tensor, is_padding_BL: torch.Tensor) -> torch.Tensor:
        after_BL = ~is_video_BL & (is_video_BL.cumsum(1) > 0)
        return scope(is_video_BL, is_padding_BL) & ~after_BL

    return reads
