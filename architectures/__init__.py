"""The slow-fast video MLLM and its variants, as Hugging Face models (arXiv 2504.01328).

Where a term of the paper lives:

| paper                                    | file                                        |
|------------------------------------------|---------------------------------------------|
| the path of a video, start to end        | `video_mllm.py`; videos and rows: `prompts.py` |
| which frames are looked at               | `selectors/`                                |
| vision encoder                           | `encoders/`                                 |
| projector, video pooling                 | `projectors.py`                             |
| fast tokens (compression)                | `compressors/`                              |
| slow tokens, their time position         | `time_positions.py`                         |
| hybrid decoder layer                     | `hybrid.py`                                 |
| cross-attention of text over slow tokens | `fusions/slow_fast.py`; rivals beside it    |
| slow keys and values, kept with the cache | `slow_memory.py`; answers: `generation.py` |
| dynamic gate with warm-up                | `gates.py`                                  |
| which layers are hybrid                  | `placement.py`                              |
| which tokens read the slow tokens        | `scope.py`                                  |
| "plug-and-play" for any Hugging Face model | `plug_and_play.py`                        |
| shapes (`slow_SD`, `gate_GNQE`)          | `tokens.py`                                 |
| cost in closed form, time and memory     | `cost.py`, `bench.py`                       |
| the official code's checkpoints          | `official.py`, `official_names.py`          |
| the official code's recorded outputs     | `parity.py`, `parity_case.py`               |

Commands: `python -m architectures.parity DIR`, `.official`, `.plug_and_play`, `.bench`, `.zoo`.

The package knows no benchmark and no experiment configuration: `harness` imports it, never the reverse.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoVideoProcessor

from architectures.configuration import SlowFastConfig
from architectures.processing import SlowFastProcessor, SlowFastVideoProcessor
from architectures.video_mllm import SlowFastForConditionalGeneration

AutoConfig.register(SlowFastConfig.model_type, SlowFastConfig)
AutoModel.register(SlowFastConfig, SlowFastForConditionalGeneration)
AutoModelForCausalLM.register(SlowFastConfig, SlowFastForConditionalGeneration)
AutoVideoProcessor.register(SlowFastConfig, SlowFastVideoProcessor)
AutoProcessor.register(SlowFastConfig, SlowFastProcessor)

__all__ = [
    "SlowFastConfig",
    "SlowFastForConditionalGeneration",
    "SlowFastProcessor",
    "SlowFastVideoProcessor",
]
