import subprocess
import sys

from hutch.content import ImageConfig, ImageInfo, KernelInfo
from hutch.models import from_json, to_json

IMAGE = ImageInfo(
    id="sha256:00",
    references=["busybox:latest"],
    architecture="amd64",
    created_at=None,
    size=1,
    layers=["sha256:01"],
    config=ImageConfig(command=["sh"], env={"A": "1"}, volumes=["/data"]),
)


def test_an_image_goes_through_json() -> None:
    assert from_json(ImageInfo, to_json(IMAGE)) == IMAGE


def test_a_kernel_goes_through_json() -> None:
    kernel = KernelInfo("6.1", "6.1.0-1", "host", 1, ["virtio_blk"], active=True)
    assert from_json(KernelInfo, to_json(kernel)) == kernel


def test_it_is_light() -> None:
    # The command line imports it on its hot path.
    script = "import sys, hutch.content; print(*(n for n in sys.modules if n.startswith('hutch')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.split() == [b"hutch", b"hutch.content"]
