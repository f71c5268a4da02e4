"""Videos as PyAV and the file format's own specification have them: frames, times, turns, odd sizes, damage."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation.video import VideoFile, write_video

CORNERS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]  # top left, top right, bottom left, bottom right


def corners(width=64, height=48, brightness=0):
    image = Image.new("RGB", (width, height))
    for place, colour in enumerate(CORNERS):
        part = Image.new("RGB", (width // 2, height // 2), tuple(value + brightness for value in colour))
        image.paste(part, (place % 2 * (width // 2), place // 2 * (height // 2)))
    return image


def colours_of(image):
    """The colours in the middle of the four quarters."""
    width, height = image.size
    return np.array([image.getpixel((x, y)) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)])


def write(path, images, rate=Fraction(25), times=None, pixel_aspect=None, **options):
    """A file that PyAV alone has written, with one encoder's defaults."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *images[0].size, "yuv444p"
        stream.codec_context.time_base = 1 / rate
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = (times or range(len(images)))[number], 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn_in_the_header(path, matrix):
    """Writes the matrix of the track header (ISO/IEC 14496-12, 8.3.2): x' = a·x + c·y, y' = b·x + d·y, y downwards."""
    data = path.read_bytes()
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(identity, data.index(b"tkhd"))
    (a, b, c, d) = (value << 16 for value in matrix)
    path.write_bytes(data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :])


def test_frames_are_those_that_were_written(tmp_path):
    images = [corners(brightness=9 * number) for number in range(5)]
    path = write(tmp_path / "clip.mp4", images)
    for file in (path, path.read_bytes()):
        with VideoFile(file, "clip.mp4") as video:
            frames = list(video)
        assert video.rate == 25 and video.frames == len(frames) == 5 and video.width == 64
        for frame, image in zip(frames, images, strict=True):
            np.testing.assert_allclose(colours_of(frame.image), colours_of(image), atol=8)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [((0, 1, -1, 0), [2, 0, 3, 1]), ((0, -1, 1, 0), [1, 3, 0, 2]), ((-1, 0, 0, -1), [3, 2, 1, 0])],
    ids=["clockwise", "counter-clockwise", "upside down"],
)
def test_frames_are_upright(tmp_path, matrix, expected):
    path = write(tmp_path / "phone.mp4", [corners()] * 2)
    turn_in_the_header(path, matrix)
    with VideoFile(path, "phone.mp4") as video:
        [first, _] = video
    assert first.image.size == ((48, 64) if matrix[0] == 0 else (64, 48))
    np.testing.assert_allclose(colours_of(first.image), [CORNERS[place] for place in expected], atol=8)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(12)])
@pytest.mark.parametrize("times", [None, [0, 1, 5, 6, 7, 20]], ids=["even", "uneven"])
def test_times_survive(tmp_path, rate, times):
    path = write(tmp_path / "clip.mp4", [corners()] * 6, rate, times)
    with VideoFile(path, "clip") as video, write_video(tmp_path / "out.mp4", video.rate, video.time_base) as writer:
        for frame in video:
            writer.write(frame.image, frame.time)
    seconds = []
    for file in (path, tmp_path / "out.mp4"):
        with av.open(str(file)) as container:
            average = container.streams.video[0].average_rate
            seconds.append([float(frame.time) for frame in container.decode(video=0)])
            if times is None:
                assert average == rate
    np.testing.assert_allclose(seconds[1], seconds[0], atol=1e-4)
    np.testing.assert_allclose(np.subtract(seconds[1], seconds[1][0]), np.array(times or range(6)) / float(rate), atol=1e-4)


@pytest.mark.parametrize("name", ["clip.mp4", "turned.mp4", "clip.mkv"])
@pytest.mark.parametrize("pixel_aspect", [None, Fraction(2), Fraction(8, 9)])
def test_the_shape_of_pixels_survives(tmp_path, name, pixel_aspect):
    """Camcorders and DVDs have pixels that are no squares: the overlay is shown as wide as the video."""
    path = write(tmp_path / name, [corners()] * 2, pixel_aspect=pixel_aspect)
    expected = pixel_aspect or Fraction(1)
    if name == "turned.mp4":
        turn_in_the_header(path, (0, 1, -1, 0))
        expected = 1 / expected
    with VideoFile(path, name) as video, write_video(tmp_path / "out.mp4", video.rate, video.time_base) as writer:
        for frame in video:
            writer.write(*frame)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == expected


@pytest.mark.parametrize("size", [(33, 47), (34, 47), (33, 48), (1, 1)])
def test_odd_sides_are_longer_by_a_copy_of_the_last_line(tmp_path, size):
    image = Image.new("RGB", size, (180, 60, 40))
    with write_video(tmp_path / "odd.mp4", Fraction(5), Fraction(1, 5)) as writer:
        for time in range(3):
            writer.write(image, time)
    with av.open(str(tmp_path / "odd.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3 and frames[0].shape[:2] == (size[1] + size[1] % 2, size[0] + size[0] % 2)
    np.testing.assert_allclose(
        frames[0].reshape(-1, 3).astype(int), np.broadcast_to((180, 60, 40), (frames[0].size // 3, 3)), atol=4
    )


def test_what_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "page.mp4").write_text("<html>")
    with pytest.raises(DataError, match=r"Video page\.mp4 cannot be read .*Invalid data"):
        VideoFile(tmp_path / "page.mp4", "page.mp4")
    path = write(tmp_path / "clip.mp4", [corners()] * 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with VideoFile(path, "clip.mp4") as video, pytest.raises(DataError, match=r"64×48 pixels are more than 0 megapixels"):
        list(video)


def test_a_video_that_was_cut_off_is_an_error(tmp_path):
    """With its index first, so that what is left can be read: it names frames that are not there."""
    images = [corners(brightness=9 * number) for number in range(12)]
    path = write(tmp_path / "clip.mp4", images, options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with VideoFile(path, "clip") as video, pytest.raises(DataError, match="Video clip cannot be read"):
        list(video)


def test_a_damaged_last_frame_is_an_error(tmp_path):
    """Threads that decode whole frames lose its error."""
    path = write(tmp_path / "clip.mp4", [corners(brightness=9 * number) for number in range(6)], options={"bf": "0"})
    with av.open(str(path)) as container:
        place, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][-1]
    data = path.read_bytes()
    damaged = data[:place] + bytes(size) + data[place + size :]
    with VideoFile(damaged, "clip") as video, pytest.raises(DataError, match=r"Video clip cannot be read \(Invalid data"):
        list(video)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    with (
        pytest.raises(DataError, match="of another size"),
        write_video(tmp_path / "x.mp4", Fraction(5), Fraction(1, 5)) as writer,
    ):
        writer.write(corners(), 0)
        writer.write(corners(32, 32), 1)
    assert list(tmp_path.iterdir()) == []
