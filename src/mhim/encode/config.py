"""What ``mhim encode`` does with the tiles, and the devices that it does it on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from mhim.config import ComponentConfig, Settings, fingerprint
from mhim.encoders import Encoder, encoders
from mhim.errors import ConfigError

EncoderConfig = Annotated[SerializeAsAny[ComponentConfig], BeforeValidator(encoders.parse)]


class EncodeConfig(Settings):
    """What ``mhim encode`` does with the tiles."""

    encoder: EncoderConfig = Field(
        default_factory=lambda: encoders.parse("efficientnet-lite0-mid"), description="encoder and its options"
    )
    storage: Literal["float16", "float32"] = Field(default="float16", description="dtype of the stored features")
    resample: Literal["parity", "fast"] = Field(
        default="parity", description="how tiles are brought to their scale: parity with PIL's bicubic, or fast"
    )
    reader: Literal["auto", "openslide", "tiff", "image"] = Field(
        default="auto",
        description="slide reader: auto chooses by content, directly where that gives OpenSlide's pixels",
    )
    batch_size: int = Field(default=64, ge=1, description="tiles encoded at once; does not change what is computed")
    device: str = Field(
        default="auto",
        description="auto (an accelerator if there is one), cpu, cuda, mps, or several: cuda:0,cuda:1",
    )
    retries: int = Field(default=1, ge=0, description="further attempts on a tile that cannot be read")
    max_failed: float = Field(
        default=0.05, ge=0, lt=1, description="largest share of a slide's tiles that may fail before the slide does"
    )
    max_seconds: float | None = Field(default=None, gt=0, description="longest time on one slide, by default none")

    def fingerprint(self, encoder: Encoder) -> str:
        """Digest of what decides the features: encoder, its weights, reader, resampling and storage."""
        facts = self.model_dump(mode="json", include={"encoder", "storage", "resample", "reader"})
        return fingerprint({**facts, "made_by": encoder.identity()})


def build_encoder(config: EncodeConfig, device: str | None = None) -> Encoder:
    """The encoder that a configuration names, on ``device`` or on the first of its devices.

    Raises:
        ConfigError: unknown or missing device, or the encoder's weights are not installed.
    """
    return encoders.build(config.encoder, device=device or resolve_devices(config.device)[0])


def resolve_devices(devices: str) -> list[str]:
    """The devices of a list, ``cuda:0,cuda:1``, each of which exists.

    Raises:
        ConfigError: a device is unknown or not there.
    """
    return [resolve_device(name.strip()) for name in devices.split(",")]


def resolve_device(device: str) -> str:
    """A device that exists; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: the device is unknown or not there.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device '{device}' cannot be used ({str(error).splitlines()[0]}); try --device cpu"
        ) from None
    return device
