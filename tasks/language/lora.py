"""Adaptation: a GPT pretrained on one text learns another through low-rank adapters."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lrpilot.tasks.data.files import cache_folder
from lrpilot.tasks.data.shared_tensors import share_tensors
from lrpilot.tasks.language.gpt import GPTTask
from lrpilot.tasks.networks.randomness import seeded

ADAPTED_LAYERS = ("query_key_value", "attention_output", "mlp_input", "mlp_output")
PRETRAINING_LR = 1e-3
WARMUP_SHARE = 0.05
FINAL_LR_SHARE = 0.1
SECONDS_BEFORE_BAR = 5


@dataclass(frozen=True)
class Pretraining:
    """How the network was made that is adapted: what names its file in the cache.

    Tiny Shakespeare, seed 0, AdamW (betas 0.9 and 0.99, weight decay 0.1), gradients of norm at
    most 1, learning rate up to 1e-3 over the first 5 % of the steps, then a cosine down to a tenth.

    All but `num_steps`, the optimizer steps, are arguments of `GPTTask`.
    """

    num_layers: int
    num_heads: int
    width: int
    context: int
    batch_size: int
    num_steps: int

    @property
    def recipe(self) -> str:
        """All that the weights depend on, but for the machine."""
        return json.dumps({"recipe": 1, **asdict(self)}, sort_keys=True)

    @property
    def file_name(self) -> str:
        """A name that changes with the configuration.

        >>> Pretraining(4, 4, 128, 64, 12, 2000).file_name
        'gpt-ce170444682a.safetensors'
        """
        return f"gpt-{hashlib.sha256(self.recipe.encode()).hexdigest()[:12]}.safetensors"

    def lr(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup = max(1, round(WARMUP_SHARE * self.num_steps))
        if step < warmup:
            return PRETRAINING_LR * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.num_steps - warmup)
        share = FINAL_LR_SHARE + (1.0 - FINAL_LR_SHARE) * (1.0 + math.cos(math.pi * progress)) / 2
        return PRETRAINING_LR * share

    def train(self, *, data_dir: str | None, device: str) -> dict[str, Tensor]:
        """The weights, trained now; with a progress bar once it has lasted five seconds."""
        from tqdm import trange

        sizes = asdict(self)
        run = GPTTask(
            name="pretraining",
            optimizer=partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.1),
            base_lr=PRETRAINING_LR,
            total_steps=sizes.pop("num_steps"),
            max_gradient_norm=1.0,
            num_privileged=1,
            data_dir=data_dir,
            device=device,
            **sizes,
        ).start(0)
        for step in trange(self.num_steps, desc="pretraining a GPT", delay=SECONDS_BEFORE_BAR):
            run.step(self.lr(step))
        return {name: weight.cpu() for name, weight in run.model.state_dict().items()}


@lru_cache(maxsize=4)
def _pretrained(
    pretraining: Pretraining, folder: Path, data_dir: str | None, device: str
) -> dict[str, Tensor]:
    """The weights from the cache, else trained and put there."""
    train = partial(pretraining.train, data_dir=data_dir, device=device)
    return share_tensors(folder / pretraining.file_name, train, source=pretraining.recipe)


@dataclass(frozen=True, kw_only=True)
class LoRATask(GPTTask):
    """Adapt a GPT that knows Shakespeare to sentences about films, by adapters alone.

    Every linear map W x of the blocks becomes W x + (alpha / rank) B A x with W fixed, A of shape
    (rank, inputs) drawn at random and B = 0, so that a run starts at the pretrained network. Only
    A and B are trained. The pretrained network is made at the first start (see `Pretraining`) and
    kept in the cache folder; its bits depend on the machine that made it.

    Needs the `peft` package: `pip install "lrpilot[lora]"`.

    Args:
        data: the text to adapt to.
        rank: of the adapters.
        alpha: numerator of their scale.
        pretraining_steps: optimizer steps of the pretraining, of 12 windows each.

    Raises:
        ImportError: by `start`, without `peft`.

    References:
        Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen. LoRA: low-rank adaptation of large
        language models. 2021.
    """

    data: str = "sst2"
    rank: int = 4
    alpha: int = 8
    pretraining_steps: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("rank", "alpha", "pretraining_steps")

    @property
    def pretraining(self) -> Pretraining:
        """How the network that is adapted is made."""
        sizes = {k: getattr(self, k) for k in ("num_layers", "num_heads", "width", "context")}
        return Pretraining(**sizes, batch_size=12, num_steps=self.pretraining_steps)

    def make_model(self, seed: int) -> nn.Module:
        """The pretrained GPT with new adapters."""
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError('the task needs peft: pip install "lrpilot[lora]"') from error
        model = super().make_model(seed)
        folder = cache_folder() / "pretrained"
        model.load_state_dict(_pretrained(self.pretraining, folder, self.data_dir, self.device))
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(ADAPTED_LAYERS))
        with seeded(seed):
            adapted: nn.Module = inject_adapter_in_model(config, model)
        return adapted
