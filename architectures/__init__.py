"""The slow-fast video MLLM and its variants, as Hugging Face models (arXiv 2504.01328).

Where a term of the paper lives:

| paper                                    | file                  |
|------------------------------------------|-----------------------|
| the path of a video, start to end        | `video_mllm.py`       |
| vision encoder                           | `encoders/`           |
| projector, video pooling                 | `projectors.py`       |
| fast tokens (compression)                | `compressors/`        |
| slow tokens, their time position         | `time_positions.py`   |
| hybrid decoder layer                     | `hybrid.py`           |
| cross-attention of text over slow tokens | `cross_attention.py`  |
| dynamic gate with warm-up                | `gates.py`            |
| which layers are hybrid                  | `placement.py`        |
| which tokens read the slow tokens        | `scope.py`            |
| shapes (`slow_BSD`, `gate_BN1`)          | `tokens.py`           |
| cost in closed form                      | `cost.py`             |

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
