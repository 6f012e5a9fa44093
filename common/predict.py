"""What is on a picture: a trained net's classes with their probabilities."""

from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import nn

from common import machine, weights
from common.advice import main_output

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SMALLEST = 2  # pixels on the shorter side below which there is nothing to see


def network(name: str) -> nn.Module:
    """A trained network: one that ships with the course, by name, or a .safetensors file.

    Raises ValueError for an unknown name or a file that is no weights file.
    """
    path = Path(name)
    if path.suffix == ".safetensors" or path.exists():
        return weights.from_file(path)
    return weights.trained(name)


def files_in(paths: tuple[Path, ...]) -> list[Path]:
    """The pictures among `paths`, those in folders included, in order.

    Raises ValueError for a folder without pictures.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
        if not inside:
            raise ValueError(f"{path} is a folder without pictures ({', '.join(sorted(ENDINGS))}).")
        found += inside
    return found


def open_picture(path: Path) -> Image.Image:
    """A picture as a person sees it: upright, in colour, on white, the first frame of several.

    Raises ValueError where the file is no picture, or is too small or too large to look at.
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (1024, 1024))  # a large JPEG is decoded smaller
            image = ImageOps.exif_transpose(image)
            if min(image.size) < SMALLEST:
                size = " x ".join(map(str, image.size))
                raise ValueError(f"it has {size} pixels; expected {SMALLEST} or more each way")
            if image.mode.startswith("I;16") or image.mode in ("I", "F"):
                low, high = image.getextrema()
                image = image.point(lambda v: (v - low) * 255 / max(high - low, 1)).convert("L")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read as a picture ({error})") from error


def prepared(model: nn.Module, picture: Image.Image) -> torch.Tensor:
    """A picture as the net's batch (1, C, H, W): resized, its centre cropped, normalised."""
    about = model.about
    size = about["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    fitted = fitted.convert("L" if about["channels"] == 1 else "RGB")
    values = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8).float() / 255
    x = values.view(height, width, -1).permute(2, 0, 1)
    mean, std = (torch.tensor(about[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return ((x - mean) / std)[None].to(machine.device())


@torch.no_grad()
def classes(model: nn.Module, picture: Image.Image, top: int = 3) -> list[tuple[str, float]]:
    """The `top` most likely (class, probability 0 to 1), most likely first."""
    model.to(machine.device()).eval()
    shares = main_output(model(prepared(model, picture))).float().softmax(1)[0]
    values, indices = shares.topk(min(max(top, 1), len(shares)))
    names = model.about["classes"]
    return [(names[int(i)], float(v)) for i, v in zip(indices, values, strict=True)]
